"""The examples in the help of each verb."""

from __future__ import annotations

EXAMPLES = {
    "quickstart": (
        "natc quickstart",
        "natc quickstart --minutes 0.5 --output /tmp/pictures",
    ),
    "tune": (
        "natc tune --kernel 7",
        "natc tune --kernel 7 --target cuda --dtype float16 --minutes 20",
        "natc tune --kernel 13 --shape 8x64x64x8 --head-dim 64",
        "natc tune --kernel 7 --operations forward,backward",
        "natc tune --kernel 7 --target cuda --arch sm_90 --export round1",
        "natc tune --import round1",
        "natc tune --recheck",
        "natc tune --set nat --minutes 60",
        "natc tune --set windows --target cuda --arch sm_90 --ray auto",
    ),
    "measure": (
        "natc measure round1",
        "natc measure round1 --minutes 5 --json",
    ),
    "build": (
        "natc build --kernel 7",
        "natc build --kernel 7x5 --operations forward --no-rpb",
        "natc build --kernel 7 --target cuda --arch sm_80,sm_90 --output lib",
    ),
    "package": (
        "natc package --kernel 7",
        "natc package --target cuda --arch sm_80,sm_90 --format wheel,archive",
        "natc package --set nat --target cuda --arch sm_90 --dry-run --json",
    ),
    "verify": (
        "natc verify",
        "natc verify dist/natc_kernels_cuda-0.1.0-py3-none-manylinux_2_28_x86_64.whl",
        "natc verify lib --key public.pem --json",
    ),
    "list": (
        "natc list",
        "natc list --prune",
        "natc list --json",
    ),
    "show": (
        "natc show --kernel 7",
        "natc show --kernel 7 --dtype float16 --target cuda --arch sm_90",
        "natc show --kernel 7 --operation d_query --json",
        "natc show schedules/cuda-sm_90/na2d_k7_d32_float16_rpb.json",
    ),
    "bench": (
        "natc bench",
        "natc bench --kernel 3x3x3 --backward --no-rpb --shape 1x8x28x28x4",
        "natc bench --device cuda --shape 128x56x56x2 --plot h100.svg",
        "natc bench --json > results.json",
        "natc bench --from results.json --html report.html",
    ),
    "convert": (
        "natc convert nat_mini.pth nat-mini --to hf",
        "natc convert shi-labs/dinat-mini-in1k-224 dinat_mini.pth --to official",
        "natc convert checkpoint.pth.tar tiny --to timm --variant nat_tiny",
    ),
    "train": (
        "natc train examples/digits.yaml",
        "natc train examples/imagenet_nat_mini.yaml --output runs/second",
    ),
    "eval": (
        "natc eval runs/digits",
        "natc eval nat_mini.pth imagenet/val --batch-size 128 --workers 8",
    ),
    "predict": (
        "natc predict cat.jpg dog.jpg --model runs/pets",
        "natc predict cat.jpg --model nat_mini --output cat-classes.png",
    ),
    "doctor": (
        "natc doctor",
        "natc doctor --why",
        "natc doctor --coverage --json",
    ),
}


def epilog(verb: str) -> str:
    """Return the last paragraph of `natc VERB --help`."""
    # \b keeps the lines of a paragraph apart.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[verb])])
