"""natc's own wheel and a wheel of kernels, in an environment that has what natc asks for, no more.

The environment holds links to the installed packages that natc's wheel requires, and to the
packages that these require: a package that is missing from the metadata is missing there, and so
is TVM.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from natc import __version__
from natc.host import detect
from natc.host.detect import detect_host_cpu
from natc.operations import GRADIENTS
from natc.spec import KernelSpec
from natc.targets import Target

CHECKOUT = Path(__file__).parents[2]
RUNS_KERNELS = {"torch", "numpy", "apache-tvm-ffi"}
COMMAND_LINE = {"typer", "rich", "msgspec", "platformdirs", "filelock", "packaging"}


def clean(**more: str) -> dict[str, str]:
    """This process's environment, in which natc and Python find nothing by themselves."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NATC_", "PYTHON", "VIRTUAL_ENV"))
    }
    return {**kept, **more}


def run(command: list[Any], **more: Any) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **more
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


# A small kernel stands for the kernels of natc's wheel, and one processor for all others.
OWN_KERNEL = KernelSpec.make(3, head_dim=4)
OPTIONS = "--kernel 3 --head-dim 4 --no-rpb --operations forward"
OTHER_ARCH = {"x86_64": "aarch64", "aarch64": "x86-64-v3"}[detect.host_machine()]


@pytest.fixture(scope="module")
def own_wheel(place: Path) -> Path:
    """The wheel of this checkout's natc, as its build backend makes it, with a small kernel."""
    source = place / "source"
    for name in ("natc", "schedules", "tuning_logs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, source / name, ignore=ignored)
    for name in ("hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    text = (CHECKOUT / "pyproject.toml").read_text()
    archs = json.dumps([detect_host_cpu().arch, OTHER_ARCH])
    text, kernels = re.subn('^kernels = ".*"$', f'kernels = "{OPTIONS}"', text, flags=re.M)
    text, lists = re.subn(r"^archs = \[.*\]$", f"archs = {archs}", text, flags=re.M)
    assert kernels == lists == 1
    (source / "pyproject.toml").write_text(text)
    run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place / "own"],
        cwd=source,
        env=clean(NATC_CACHE_DIR=str(place / "cache"), NATC_CC="false"),
    )
    (wheel,) = (place / "own").iterdir()
    return wheel


@pytest.fixture(scope="module")
def kernel_wheel(place: Path) -> Path:
    """What NAT-Mini asks for on this CPU, with gradients."""
    words = ["--kernel", "7", "--rpb", "--dtype", "float32", "--operations", "forward,backward"]
    built = json.loads(
        run(
            [sys.executable, "-m", "natc", "package", "--target", detect_host_cpu().name, *words,
             "-o", place / "dist", "--json"],
            env=clean(PYTHONPATH=str(CHECKOUT), NATC_CACHE_DIR=str(place / "cache")),
        )
    )  # fmt: skip
    (file,) = built["files"]
    return Path(file["path"])


def required(wheel: Path) -> set[str]:
    """Return the names of the packages that a wheel requires, extras aside."""
    (distribution,) = metadata.distributions(path=[str(wheel)])
    return set(names(distribution.requires or []))


def names(requirements: list[str]) -> Iterator[str]:
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def closure(first: set[str]) -> dict[str, metadata.Distribution]:
    """Return packages and their requirements, as installed here."""
    distributions: dict[str, metadata.Distribution] = {}
    todo = sorted(first)
    while todo:
        name = todo.pop()
        if name not in distributions:
            distributions[name] = metadata.distribution(name)
            todo += sorted(names(distributions[name].requires or []))
    return distributions


@pytest.fixture(scope="module")
def python(place: Path, own_wheel: Path, kernel_wheel: Path) -> Path:
    """The interpreter of an environment in which both wheels are installed."""
    venv.create(place / "venv", with_pip=False, symlinks=True)
    interpreter = place / "venv" / "bin" / "python"
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    for package in closure(required(own_wheel)).values():
        parts = {file.parts[0] for file in package.files or []}
        for part in sorted(parts - {"..", "__pycache__"}):
            link = site / part
            if not link.exists():
                link.symlink_to(Path(str(package.locate_file(part))).resolve())
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", own_wheel, kernel_wheel], env=clean())
    return interpreter


def test_natc_requires_what_runs_kernels_and_a_command_line(own_wheel: Path) -> None:
    assert required(own_wheel) == RUNS_KERNELS | COMMAND_LINE
    # No package of those brings the compiler, either.
    everything = set(closure(required(own_wheel)))
    compiler = "apache-tvm xgboost xgboost-cpu cloudpickle psutil tornado ziglang"
    assert not everything & set(compiler.split())


def test_a_wheel_of_kernels_requires_natc_alone(kernel_wheel: Path) -> None:
    assert required(kernel_wheel) == {"natc"}
    assert kernel_wheel.name.endswith(f"-py3-none-manylinux_2_28_{detect.host_machine()}.whl")


NAT_MINI = """
import importlib.util, json, os, sys, warnings
import torch, natc
warnings.simplefilter("error", natc.NatcFallbackWarning)
from natc import models, runtime
from natc.demo.compare import compare_network

torch.manual_seed(0)
model = models.nat_mini(num_classes=10)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
image = torch.randn(1, 3, 224, 224)
forward = compare_network(model.eval(), image)
model.train()
model(image).square().mean().backward()
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
(library,) = [l for l in runtime.kernels() if l.manifest.spec == "na2d_k7_d32_float32_rpb"]
resolved = runtime.registry.resolved
print(json.dumps({
    "natc": os.path.dirname(natc.__file__),
    "manifest": str(library.manifest_path),
    "uncovered": list(forward.uncovered),
    "covered": len(forward.covered),
    "error": forward.max_error,
    "operations": sorted({key.operation for key, value in resolved.items() if value}),
    "gradients": all(bool(p.grad.isfinite().all()) for p in model.parameters()),
    "compilers": [n for n in ("tvm", "xgboost", "ziglang") if importlib.util.find_spec(n)],
    "opened": [n for n in ("libtvm_runtime", "libtvm_compiler", "libtvm.so") if n in maps],
    "imported": [n for n in sys.modules if n.startswith("natc_kernels")],
}))
"""


def test_nat_mini_runs_and_trains_on_kernels_where_there_is_no_compiler(
    python: Path, place: Path
) -> None:
    environment = clean(NATC_STRICT="1", NATC_CACHE_DIR=str(place / "empty"))
    result = json.loads(run([python, "-c", NAT_MINI], env=environment, cwd=place))
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    assert result["natc"] == str(site / "natc")
    library = f"na2d_k7_d32_float32_rpb.{detect_host_cpu().name}.json"
    (module,) = site.glob("natc_kernels_llvm_*[0-9_]")
    assert result["manifest"] == str(module / "lib" / library)
    assert (result["uncovered"], result["covered"]) == ([], 1) and result["error"] < 1e-4
    assert GRADIENTS in result["operations"]
    assert result["gradients"]
    assert result["compilers"] == result["opened"] == result["imported"] == []
    assert not (place / "empty").exists()


OWN = """
import torch, natc
from natc import runtime
from natc.spec import KernelSpec

query, key, value = torch.randn(3, 1, 5, 6, 2, 4).unbind()
output = natc.na2d(query, key, value, 3)
expected = natc.reference.neighborhood_attention(query, key, value, kernel_size=3)
torch.testing.assert_close(output, expected)
print(runtime.explain(KernelSpec.make(3, head_dim=4)).choice.library.manifest_path)
"""


def test_natc_comes_with_kernels_that_run_where_there_is_no_compiler(
    python: Path, place: Path
) -> None:
    environment = clean(NATC_STRICT="1", NATC_CACHE_DIR=str(place / "empty"))
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    own = site / "natc" / "_data" / "lib"
    used = run([python, "-c", OWN], env=environment, cwd=place).strip()
    assert used == str(own / f"{OWN_KERNEL.name}.{detect_host_cpu().name}.json")
    # The library for another processor is there, and passed over.
    targets = (detect_host_cpu(), Target("llvm", OTHER_ARCH))
    names = sorted(f"{OWN_KERNEL.name}.{target.name}.json" for target in targets)
    assert sorted(path.name for path in own.glob("*.json")) == names
    command = [python.with_name("natc"), "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    rows = [row for row in json.loads(done.stdout)["libraries"] if row["from"] == "natc"]
    assert [row["ok"] for row in rows] == [True, True]


def test_kernels_in_natcs_wheel_are_small_and_fit_into_any_wheel(
    own_wheel: Path, kernel_wheel: Path
) -> None:
    assert own_wheel.name.endswith("-py3-none-any.whl")
    # One library as natc's wheel holds six.
    assert kernel_wheel.stat().st_size < 200_000


def load_hook() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", CHECKOUT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_natcs_wheel_is_built_without_a_compiler_and_says_so(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_hook()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    warnings: list[str] = []
    app = SimpleNamespace(display_warning=warnings.append)
    hook = module.OwnKernels(str(CHECKOUT), {}, None, None, "", "wheel", app)
    data: dict[str, Any] = {"force_include": {}}
    hook.initialize(version, data)
    hook.finalize(version, data, "")
    assert data == {"force_include": {}}
    # An editable install is for people who build kernels themselves.
    assert ["apache-tvm and ziglang" in text for text in warnings] == [True] * (
        version == "standard"
    )


def test_the_command_line_works_there(python: Path, place: Path) -> None:
    natc = python.with_name("natc")
    environment = clean(NATC_CACHE_DIR=str(place / "empty"))
    assert run([natc, "--version"], env=environment).split()[-1] == __version__
    result = json.loads(run([natc, "verify", "--json"], env=environment, cwd=place))
    # The wheel of kernels holds a single library, natc's own wheel two.
    assert result["ok"] and sum(len(report["libraries"]) for report in result["checked"]) == 3
    done = subprocess.run(
        [natc, "build", "--kernel", "3"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "pip install 'natc[compiler]'" in done.stderr
