"""Bad input: one line on stderr that helps, nothing on stdout, no traceback; nothing runs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.builder_double import Builder
from support.command_line import Natc

import natc as natc_package
import natc.tune as natc_tune
from natc.bench import times
from natc.cli.verbs import package
from natc.host import detect, environment, gpu
from natc.targets import Target

pytestmark = pytest.mark.quick

SAVED = Path(__file__).parents[2] / "benchmarks" / "results" / "attention_k7_float32_cpu.json"
# A command line, and what its error names.
BAD = [
    ("tune --kernel 0", ["kernel_size 0", "1 to 63"]),
    ("tune --kernel 7 --head-dim 300", ["head_dim is 300", "1 to 256"]),
    ("tune --kernel 7 --target opencl", ["'opencl'", "llvm, cuda"]),
    ("tune --kernel 7 --rank 4", ["rank is 4", "1, 2 or 3"]),
    ("tune --kernel 7x5 --rank 1", ["kernel_size", "1 integers"]),
    ("tune --kernel 7 --operations dance", ["'dance'", "forward, backward"]),
    ("tune --kernel 7 --dtype float64", ["float64", "float32, float16, bfloat16"]),
    ("tune --kernel 7 --shape 56x56", ["'56x56'", "1x56x56x2"]),
    ("tune --kernel 7 --shape 0x56x56x2", ["'0x56x56x2'"]),
    ("tune --kernel 7x5x3 --shape 1x9x9x2", ["'1x9x9x2'", "depth"]),
    ("tune --kernel 7 --import x", ["--import takes no --kernel"]),
    ("tune --import no-such-directory", ["no-such-directory", "no candidates"]),
    ("tune --set vit", ["set is 'vit'; it must be nat or windows"]),
    ("tune --set nat --target opencl", ["'opencl'", "llvm, cuda"]),
    ("tune --set nat --target cuda --ray ray://h:1", ["ray is 'ray://h:1'"]),
    ("tune --set nat --target cuda --ray auto", ["no NVIDIA GPU", "--arch"]),
    ("tune --set nat --kernel 7 --no-rpb", ["--set takes no --kernel and no --rpb"]),
    ("tune --set nat --minutes 0.1", ["minutes is 0.1", "search of set nat", "at least 0.17"]),
    ("tune --set nat --target cuda", ["no NVIDIA GPU", "--ray ADDRESS"]),
    ("tune --kernel 7 --export x --ray auto", ["--ray takes no --export"]),
    ("tune --kernel 7 --ray host", ["ray is 'host'; it must be auto or HOST:PORT"]),
    (
        "tune --kernel 7x5 --target cuda --arch sm_100",
        ["no NVIDIA GPU", "natc build --kernel 7x5 --target cuda --arch sm_100"],
    ),
    ("tune --kernel 7 --target cuda-sm_80", ["no NVIDIA GPU", "--arch sm_80"]),
    # A wrong architecture is the first thing to say.
    ("tune --kernel 7 --target cuda --arch sm_12", ["'sm_12'"]),
    ("measure no-such-directory", ["no-such-directory", "natc tune", "--export"]),
    ("build --kernel 7 --target cuda --arch sm_12", ["'sm_12'", "sm_90"]),
    ("build --kernel 7 --target llvm --arch sm_90", ["'sm_90'", "x86-64-v2"]),
    ("build --kernel 7 --target cuda", ["no NVIDIA GPU", "--arch"]),
    ("build --kernel 7 --value-dim 300", ["value_dim is 300", "1 to 256"]),
    ("build --kernel 7 --operations forward,tune", ["'tune'", "backward, unfused"]),
    ("build --kernel 7 --operations ''", ["operations has ''"]),
    ("build -k 7 --value-dim 8 --operations unfused", ["value_dim is 8", "head_dim 32"]),
    (
        "build -k 7 --dtype float64 --target cuda --arch sm_90",
        ["dtype is float64", "float32, float16, bfloat16", "natc.reference"],
    ),
    ("package --set vit", ["set is 'vit'; it must be nat"]),
    ("package --kernel 7 --format egg", ["format is 'egg'"]),
    ("package -k 7 --dtype float64 --target cuda --arch sm_90", ["dtype is float64"]),
    ("package --kernel 7 --arch x86-64-v9", ["'x86-64-v9' is unknown"]),
    ("package --kernel 7 --arch x86-64-v3,aarch64", ["make one for each"]),
    ("package --kernel 7 --target cuda --arch sm_1", ["'sm_1' is unknown"]),
    ("package --kernel 7 --head-dim 8,a", ["head_dim is '8,a'"]),
    ("package --kernel 7 --dtype float16,int8", ["dtype 'int8' is unknown"]),
    ("package --kernel ' , '", ["kernel is ' , '"]),
    ("package --from . --kernel 7", ["--from packs a directory unchanged"]),
    ("package --from . --sign no.pem", ["no.pem"]),
    ("show", ["--kernel is missing"]),
    ("show na2d_k7_d32_float32 --kernel 7", ["NAME and --kernel are both there"]),
    ("show dance", ["'dance' is neither a file nor the name of a kernel"]),
    ("show absent.so", ["file absent.so does not exist"]),
    ("show .", ["natc verify"]),
    ("show --kernel 7 --operation dance", ["operation is 'dance'"]),
    ("show --kernel 7 --no-rpb --operation d_rpb", ["na2d_k7_d32_float32 has"]),
    ("show --kernel 7 --target cuda", ["no NVIDIA GPU"]),
    ("show --kernel 7 --target cuda --arch sm_12", ["'sm_12'"]),
    ("bench --kernel seven", ["'seven'", "such as 7"]),
    ("bench --kernel 3x3x3 --shape 1x9x9x2", ["shape '1x9x9x2' is not batch x depth"]),
    ("bench --device cuda", ["torch sees no GPU"]),
    ("bench --plot x.pdf", ["plot x.pdf has the suffix .pdf; it must be .svg or .png"]),
    ("bench --plot x", ["the suffix (none)"]),
    ("bench --html x.txt", ["report x.txt has the suffix .txt; it must be .html"]),
    ("bench --from absent.json", ["results absent.json cannot be read"]),
    (f"bench --from {SAVED} --kernel 7", ["--kernel goes with measuring"]),
    (f"bench --from {SAVED} --no-rpb", ["--rpb goes with measuring"]),
    ("bench --peers reference,rival", ["--peers has 'rival'; it must be some of reference"]),
    ("bench --dilation 2x2x2", ["dilation '2x2x2' is not a positive number, nor 2 such"]),
    ("bench --stride 0", ["stride '0' is not a positive number"]),
    ("bench --stride 8", ["stride is [8, 8]; it must be 1 to the kernel size, 7"]),
    ("bench --heads-kv 3", ["heads_kv is 3; it must divide the 2 heads of shape 1x56x56x2x32"]),
]


@pytest.fixture(autouse=True)
def nothing_runs(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let searches, builds and measurements fail the test; the compiler seems to be installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module, name in ((natc_tune, "tune"), (package, "_build"), (times, "time_problems")):
        # Not setattr, which would load the search, and TVM with it.
        monkeypatch.setitem(vars(module), name, lambda *_, **__: pytest.fail("it ran"))
    yield
    assert builder.asked == []


@pytest.mark.parametrize(
    ("line", "expected"), BAD, ids=[line.replace(str(SAVED), "SAVED") for line, _ in BAD]
)
def test_bad_input_is_refused_in_a_line(natc: Natc, line: str, expected: list[str]) -> None:
    error = natc.refused(*shlex.split(line))
    for part in expected:
        assert part in error


@pytest.mark.parametrize(
    "line",
    [
        "build",
        "tune",
        "dance",
        "tune --kernel 7 --dtype float8",
        "tune --kernel 7 --minutes 0",
        "tune --kernel 7 --trials 0",
        "tune --kernel 7 --trials many",
        "tune --kernel 7 --seed -1",
        "list --all",
    ],
)
def test_bad_usage_is_refused(natc: Natc, line: str) -> None:
    code, out, err = natc(*line.split())
    assert (code, out) == (2, "")
    assert "Usage: natc" in err and "Traceback" not in err


def test_tuning_for_another_device_is_refused(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    h100 = gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("13.0", (h100,)))
    monkeypatch.setattr(detect, "detect_host_cpu", lambda: Target("llvm", "x86-64-v3"))
    for target, machine in (("llvm-x86-64-v4", "llvm-x86-64-v3"), ("cuda-sm_100", "cuda-sm_90")):
        error = natc.refused("tune", "--kernel", "7", "--target", target)
        assert f"{target} does not run on this machine, which is {machine}" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build --kernel 7 --output DIR", "is not writable; name another with --output"),
        ("package --kernel 3 --output DIR", "is not writable; name another with --output"),
        ("quickstart --output DIR", "cannot be created: not a directory. Name another"),
        ("bench --plot DIR/x.svg", "is not writable, so x.svg cannot be"),
        ("bench --html DIR/x.html", "is not writable, so x.html cannot be"),
    ],
)
def test_a_directory_that_cannot_be_written_is_named(
    natc: Natc, place: Path, line: str, message: str
) -> None:
    (place / "file").touch()
    directory = place / "file" / "results"
    error = natc.refused(*line.replace("DIR", str(directory)).split(), code=1)
    assert f"directory {directory} {message}" in error


def test_an_unwritable_cache_names_its_variable(
    natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").touch()
    monkeypatch.setenv("NATC_CACHE_DIR", str(place / "file"))
    error = natc.refused("build", "--kernel", "7", code=1)
    assert str(place / "file" / "lib") in error and "NATC_CACHE_DIR" in error


@pytest.mark.parametrize(
    ("line", "missing", "message"),
    [
        ("tune --kernel 7", "tvm", "natc tune needs the compiler, which is not installed"),
        ("build --kernel 7", "tvm", "natc build needs the compiler, which is not installed"),
        ("quickstart", "skimage", "needs skimage: pip install 'natc[compiler,demo]'"),
        ("bench --plot x.svg", "matplotlib", "pip install 'natc[demo]'"),
    ],
)
def test_a_missing_extra_is_named(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, line: str, missing: str, message: str
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == missing else object()
    )
    error = natc.refused(*line.split(), code=1)
    assert message in error and "pip install 'natc[" in error


@pytest.mark.parametrize("verb", ["tune", "build"])
def test_crashing_versions_refused(natc: Natc, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    versions = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.15.post2"}
    monkeypatch.setattr(environment, "version_of", versions.get)
    error = natc.refused(verb, "--kernel", "7", code=1)
    assert "apache-tvm 0.27.0.post1 crashes with apache-tvm-ffi 0.1.15.post2" in error


def test_the_version(natc: Natc) -> None:
    assert natc("--version") == (0, f"natc {natc_package.__version__}\n", "")


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "natc", "tune", "--kernel", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("natc: error: kernel_size 0")
