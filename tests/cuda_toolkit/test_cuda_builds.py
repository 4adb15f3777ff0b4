"""Libraries for GPUs, compiled on a machine without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from support.fresh_process import run_fresh
from support.library_files import library_of, manifest_of

import natc
from natc.compiler.build import build_library
from natc.compiler.tensor_cores.choice import KERNELS
from natc.errors import BuildError, CompilerNotFound
from natc.host import c_compiler, toolchain
from natc.operations import operations_of
from natc.spec import KernelSpec
from natc.store import manifest
from natc.store.manifest import function_name, load_manifest
from natc.targets import Target

try:
    toolchain.find_nvcc()
except CompilerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(natc.__file__).parents[1]
TESTS = Path(__file__).parents[1]
ARCHS = ("sm_80", "sm_90")
# Small, since nvcc compiles all of its operations twice.
SPEC = KernelSpec.parse("na2d_k3_d16_float16_rpb")
# Every rank and dtype; vectors of 1, 2, 4 and 8 channels; one lane and many; one pass and two.
FORWARDS = (
    "na2d_k7_d32_bfloat16_rpb",
    "na2d_k9_d64_float32",
    "na2d_k4x3_d12_float32_rpb",
    "na2d_k3_d1_float16_rpb",
    "na2d_k17_d128_bfloat16_rpb",
    "na1d_k63_d256v24_float16",
    "na3d_k3x7x5_d20_bfloat16",
    "na3d_k7_d24_float32_rpb",
)
# Every other operation of these as well.
WHOLE = ("na1d_k5_d9_bfloat16_rpb", "na2d_k4x3_d256v12_float16", "na3d_k3_d24_float32_rpb")


def cuobjdump() -> str:
    """Return the program's path: from the package of its name, or from PATH."""
    try:
        files = metadata.files("nvidia-cuda-cuobjdump") or []
    except metadata.PackageNotFoundError:
        files = []
    programs = [str(file.locate()) for file in files if file.name == "cuobjdump"]
    path = programs[0] if programs else shutil.which("cuobjdump")
    if path is None:
        pytest.skip("cuobjdump is not installed: pip install nvidia-cuda-cuobjdump")
    return path


def dumped(library: Path, option: str) -> str:
    done = subprocess.run(
        [cuobjdump(), option, str(library)], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for two architectures, made by the command line as a user would."""
    directory = tmp_path_factory.mktemp("cuda")
    done = subprocess.run(
        [sys.executable, "-m", "natc", "build", "--kernel", "3", "--head-dim", "16", "--rpb",
         "--target", "cuda", "--arch", "sm_90,sm_80", "-o", str(directory)],
        cwd=ROOT,
        env={**os.environ, "NATC_WORKSPACE": str(directory / "workspace")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = library_of(directory / f"{SPEC.name}.cuda.json")
    assert f"built {path} (forward, backward, unfused; sm_80, sm_90; " in done.stdout
    for arch in ARCHS:
        # The note names a schedule, which depends on the tuned ones.
        assert f"note: {SPEC.name} for cuda-{arch}: " in done.stderr
    return path


def test_it_holds_machine_code_for_exactly_the_architectures_asked_for(library: Path) -> None:
    images = re.findall(r"\.(sm_\w+)\.cubin", dumped(library, "-lelf"))
    assert sorted(images) == list(ARCHS)
    # What drivers of newer GPUs compile is there once, for the newest.
    assert re.findall(r"\.(sm_\w+)\.ptx", dumped(library, "-lptx")) == ["sm_90"]
    assert load_manifest(manifest_of(library)).ptx == "sm_90"


def test_it_holds_the_kernel_of_each_entry(library: Path) -> None:
    text = dumped(library, "--dump-resource-usage")
    for functions in load_manifest(manifest_of(library)).entries.values():
        for name in functions.values():
            usage = re.search(rf"Function {name}_kernel:\s+REG:(\d+) STACK:(\d+)", text)
            assert usage, name
            # On the stack lie the tables of windows and the logits, which are indexed; numbers
            # that do not fit into registers would make it larger.
            assert 0 < int(usage[1]) < 255 and int(usage[2]) < 512, usage[0]
    # Operations that use tensor cores, unless a schedule says otherwise, have a second kernel.
    operations = operations_of(SPEC)
    fewest, second = len(operations), sum(name in KERNELS for name in operations)
    assert second == 9
    assert fewest <= text.count("Function ") / len(ARCHS) <= fewest + second


def test_the_manifest_names_the_architectures(library: Path) -> None:
    content = load_manifest(manifest_of(library))
    assert content.target == manifest.LibraryTarget("cuda", ARCHS)
    assert content.alignment == 16
    assert content.sha256 == manifest.file_sha256(library)
    assert list(content.entries) == list(operations_of(SPEC))
    assert set(content.schedule) == set(ARCHS)


def built(spec: KernelSpec, directory: Path, operations: Sequence[str]) -> str:
    """Build operations of a kernel and return what cuobjdump says of its functions."""
    target = Target("cuda", "sm_90")
    path = build_library(spec, target, directory / "lib", untuned=True, operations=operations)
    text = dumped(library_of(path), "--dump-resource-usage")
    for operation in operations:
        assert f"Function {function_name(spec, operation, target)}_kernel" in text
    return text


@pytest.mark.parametrize("name", FORWARDS)
def test_every_kind_of_forward_compiles(place: Path, name: str) -> None:
    """With lse: the other forwards do less, or read their inputs from one tensor."""
    assert built(KernelSpec.parse(name), place, ["forward_lse"]).count("Function ") in (1, 2)


@pytest.mark.parametrize(
    "name, operation",
    [
        ("na2d_k3_d32_float16_rpb", "forward_lse"),
        ("na2d_k7_d32_bfloat16_rpb", "forward_lse"),
        ("na2d_k13_d32_float16_rpb", "forward_lse"),
        ("na2d_k7_d64_float16_rpb", "forward_lse"),
        ("na2d_k21_d64_float16", "forward_lse"),
        ("na2d_k7_d32_float16_rpb", "d_query"),
        ("na1d_k23_d64_bfloat16_rpb", "d_rpb"),
    ],
)
def test_tensor_cores_keep_numbers_in_registers(place: Path, name: str, operation: str) -> None:
    """Nothing is on the stack; d_rpb alone has shared memory. Lanes part for stores only."""
    spec, target = KernelSpec.parse(name), Target("cuda", "sm_90")
    path = build_library(spec, target, place / "lib", untuned=True, operations=[operation])
    kernel = f"{function_name(spec, operation, target)}_kernel"
    library = library_of(path)
    text = dumped(library, "--dump-resource-usage")
    start = rf"Function {kernel}:\s+"
    usage = re.search(start + r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    assert usage, text
    assert int(usage[1]) <= 255 and usage[2] == "0", usage[0]
    assert (usage[3] == "0") == (operation != "d_rpb"), usage[0]
    functions = dumped(library_of(path), "-sass").split("Function : ")
    (code,) = (f for f in functions if f.startswith(f"{kernel}\n"))
    assert "HMMA" in code and (where_lanes_part(code) > 0 or operation == "d_rpb")


def where_lanes_part(code: str) -> int:
    """Check that lanes do nothing together between where they may part and where they meet again.

    Return how many such places there are. Where the compiler knows that all lanes take a branch or
    none does, it does not say where they meet: those are not looked at.
    """
    parted: dict[str, bool] = {}
    number = 0
    pattern = re.compile(r"\*/\s+(@!?U?P\d\s+)?([A-Z0-9_]+)(?:[.\w]*\s+(B\d+)\b)?")
    for condition, instruction, place in pattern.findall(code):
        if instruction == "BSSY":
            parted[place] = False
        elif instruction == "BSYNC":
            number += parted.pop(place)
        elif instruction in ("BRA", "EXIT") and condition:
            parted = dict.fromkeys(parted, True)
        elif instruction in ("HMMA", "SHFL", "VOTE", "WARPSYNC"):
            assert not any(parted.values()) and not condition, instruction
    return number


@pytest.mark.parametrize("name", WHOLE)
def test_every_operation_compiles(place: Path, name: str) -> None:
    spec = KernelSpec.parse(name)
    text = built(spec, place, operations_of(spec))
    assert text.count("Function ") >= len(operations_of(spec)) > 5
    # Threads of these share nothing.
    for operation in operations_of(spec, ("backward", "unfused")):
        name = function_name(spec, operation, Target("cuda", "sm_90"))
        usage = re.search(rf"Function {name}_kernel:.*?SHARED:(\d+)", text, re.S)
        assert usage and int(usage[1]) == 0, usage


@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_100", "sm_103", "sm_120"])
def test_other_architectures_compile(place: Path, arch: str) -> None:
    spec = KernelSpec.parse("na2d_k3_d8_float16")
    operations = ["d_key" if arch == "sm_120" else "forward_lse"]
    path = build_library(
        spec, Target("cuda", arch), place / "lib", untuned=True, operations=operations
    )
    assert re.findall(r"\.(sm_\w+)\.cubin", dumped(library_of(path), "-lelf")) == [arch]


def test_the_same_library_is_built_again(place: Path) -> None:
    spec = KernelSpec.parse("na2d_k3_d8_float16")
    targets = [Target("cuda", "sm_90"), Target("cuda", "sm_80")]
    first, second = (
        build_library(spec, chosen, place / directory, untuned=True, families=["unfused"])
        for chosen, directory in ((targets, "one"), ([*reversed(targets)], "two"))
    )
    assert load_manifest(first).sha256 == load_manifest(second).sha256


def test_place_time_and_user_of_a_build_change_nothing(place: Path) -> None:
    """Other directories, another mask of permissions, time zone, language and hash seed."""
    program = (
        "import os, sys; os.umask(int(sys.argv[1], 8))\n"
        "from natc.compiler.build import build_library\n"
        "from natc.spec import KernelSpec\n"
        "from natc.targets import Target\n"
        "build_library(KernelSpec.parse('na2d_k3_d8_float16'), Target('cuda', 'sm_80'), 'lib',"
        " untuned=True, operations=['forward', 'd_key'])"
    )
    libraries = []
    for mask, seed, zone in (("022", "1", "UTC"), ("077", "2", "Asia/Tokyo")):
        folder = place / f"folder of {mask}"
        (folder / "scratch").mkdir(parents=True)
        environment = {
            **os.environ, "TMPDIR": str(folder / "scratch"), "PYTHONHASHSEED": seed, "TZ": zone,
            "LC_ALL": "C" if seed == "1" else "C.UTF-8", "USER": seed, "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        subprocess.run(
            [sys.executable, "-c", program, mask], cwd=folder, env=environment, check=True
        )
        (code,) = (folder / "lib").glob("*.so")
        libraries.append(code.read_bytes())
        assert str(folder).encode() not in libraries[-1]
    assert libraries[0] == libraries[1]


# What goes wrong


def test_no_nvcc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(CompilerNotFound, match="nvcc was not found.*CUDA_HOME.*CUDA toolkit"):
        toolchain.find_nvcc()


def test_an_nvcc_that_fails_is_quoted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = place / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho nvcc fatal: no luck >&2\nexit 4\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BuildError, match="sm_90.* nvcc ended with 4.\nnvcc fatal: no"):
        build_library(SPEC, Target("cuda", "sm_90"), place / "lib", untuned=True)
    assert list((place / "lib").iterdir()) == []


# On a machine without a GPU: in a process of its own, since a crash would end it


CALL = """
import torch, tvm_ffi
from support.on_gpu import on_gpu
module = tvm_ffi.load_module(LIBRARY)
query, key, value, output = (
    torch.zeros(1, 8, 8, 2, 16, dtype=torch.float16) for _ in range(4))
rpb, lse = torch.zeros(2, 5, 5), torch.zeros(1, 8, 8, 2)
def attempt(function, *tensors, stride=1):
    try:
        function(*tensors, 1.0, 1, 1, stride, stride, 0, 0, 1)
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
    else:
        print("no error")
"""


def messages(library: Path, program: str) -> list[str]:
    entries = load_manifest(manifest_of(library)).entries
    constants = f"LIBRARY, ENTRIES = {str(library)!r}, {entries!r}\n"
    places = os.pathsep.join(map(str, (ROOT, TESTS)))
    return run_fresh(f"{constants}{CALL}{program}", PYTHONPATH=places).splitlines()


def has_driver() -> bool:
    program = "import ctypes; ctypes.CDLL('libcuda.so.1')"
    return not subprocess.run([sys.executable, "-c", program], capture_output=True).returncode


def test_it_loads_without_a_gpu_and_refuses_tensors_of_the_cpu(library: Path) -> None:
    program = """
for arch in ("sm_80", "sm_90"):
    attempt(module[ENTRIES["forward"][arch]], query, key, value, rpb, output)
    attempt(module[ENTRIES["forward_lse"][arch]], query, key, value, rpb, output, lse)
"""
    printed = messages(library, program)
    assert len(printed) == 4
    for line in printed:
        assert "device_type" in line or "cuda" in line, line
        assert not line.startswith("no error")


@pytest.mark.skipif(has_driver(), reason="there is a CUDA driver here, which would launch")
def test_a_launch_without_a_driver_says_so(library: Path) -> None:
    program = """
given = [on_gpu(t) for t in (query, key, value, rpb, output)]
for _ in range(2):
    attempt(module[ENTRIES["forward"]["sm_90"]], *given)
far = [on_gpu(t, 1000) for t in (query, key, value, rpb, output)]
attempt(module[ENTRIES["forward"]["sm_90"]], *far)
"""
    opening = "RuntimeError natc: opening the CUDA driver (libcuda.so.1) failed"
    choosing = "RuntimeError natc: choosing the device failed"
    assert messages(library, program) == [opening, opening, choosing]


# A driver of CUDA 12.4 that refuses all code.
OLD_DRIVER = """
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int *d, int n) { return *d = 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)8; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)8; return 0; }
int cuCtxPushCurrent_v2(void *c) { return 0; }
int cuCtxPopCurrent_v2(void **c) { return 0; }
int cuModuleLoadData(void **m, const void *image) {
  return *(const unsigned *)image == 0xBA55ED50 ? 209 : 1; /* whether it is a fatbin */
}
int cuModuleGetFunction(void **f, void *m, const char *n) { return 1; }
int cuLaunchKernel(void) { return 1; }
int cuGetErrorString(int e, const char **s) {
  *s = e == 209 ? "no kernel image" : "other";
  return 0;
}
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
"""


def test_a_driver_that_is_too_old_for_the_code_is_named(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "cc",
        "-w",
        "-x",
        "c",
        "-fPIC",
        "-shared",
        "-o",
        str(tmp_path / "libcuda.so.1"),
        "-",
    ]
    subprocess.run(command, input=OLD_DRIVER.encode(), check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    program = """
given = [on_gpu(t) for t in (query, key, value, rpb, output)]
attempt(module[ENTRIES["forward"]["sm_90"]], *given)
"""
    toolkit = c_compiler.cuda_version()
    version = load_manifest(manifest_of(library)).versions["cuda"]
    assert toolkit > (12,) and version == ".".join(map(str, toolkit))
    message = "RuntimeError natc: loading the kernel's machine code"
    if toolkit >= (13,):
        message += (
            f", which was compiled by CUDA {version}, by a driver for CUDA 12.4 (update the "
        )
        message += "driver, or build with an older CUDA)"
    assert messages(library, program) == [f"{message} failed: no kernel image"]


def test_a_map_with_too_many_tiles_is_refused(library: Path) -> None:
    # Tensor cores, which serve a stride of 1, have one grid axis for all tiles. Too long for the
    # tiles of any schedule; its memory is never touched.
    program = """
long = torch.empty(1, 1, 128 * 65535 + 1, 1, 16, dtype=torch.float16)
given = [on_gpu(t) for t in (long, long, long, torch.zeros(1, 5, 5), long)]
attempt(module[ENTRIES["forward"]["sm_90"]], *given, stride=2)
"""
    assert messages(library, program) == [
        "RuntimeError natc: launching the kernel on more than 65,535 tiles of a map's axis failed"
    ]


def test_it_needs_no_cuda_library(library: Path) -> None:
    """It links to no CUDA library, so that it runs with any version of CUDA."""
    program = """
maps = open("/proc/self/maps").read()
print([name for name in ("libcuda", "libcudart", "libtvm_runtime") if name in maps])
"""
    if sys.platform != "linux":
        pytest.skip("looks into /proc")
    process = f"import tvm_ffi; tvm_ffi.load_module({str(library)!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['torch'] = None\n" + process],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_natc_does_not_choose_it_for_a_cpu(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natc import runtime

    monkeypatch.setenv("NATC_LIB_PATH", str(library.parent))
    runtime.clear()
    explanation = runtime.explain(SPEC, "cpu")
    runtime.clear()
    assert explanation.choice is None
    assert "made for cuda-sm_80, cuda-sm_90, which does not run on" in str(explanation)
    assert json.loads(manifest_of(library).read_text())["target"]["kind"] == "cuda"
