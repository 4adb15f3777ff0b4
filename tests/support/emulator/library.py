"""Building a library of emulated kernels, and calling its functions with tensors of the CPU."""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tvm_ffi
from torch import Tensor

from natc.compiler.build import cuda
from natc.host.c_compiler import link_library, run, zig_caches
from natc.host.detect import host_machine
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.targets import Target
from support.on_gpu import on_gpu

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
GPU = Target("cuda", "sm_90")
# The thread sanitizer's instrumentation calls a function at each access to memory, the other's
# where it finds something wrong; memory.c has these functions.
_CHECKS = "alignment,array-bounds,signed-integer-overflow,shift,integer-divide-by-zero"
_KERNEL_OPTIONS = (
    "-O0",
    "-x", "c++", "-std=c++17", "-nostdinc++", "-fno-exceptions", "-fno-rtti",
    # One option each: of a list with "thread" in it, zig takes nothing else.
    "-fno-sanitize=undefined", "-fsanitize=thread", f"-fsanitize={_CHECKS}",
    # Registers that nothing was written to hold NaN.
    "-ftrivial-auto-var-init=pattern",
    # Accesses that became part of a vector would escape the instrumentation.
    "-fno-vectorize", "-fno-slp-vectorize", "-ffp-contract=off",
    "-include", str(INCLUDE / "device_functions.h"), "-I", str(INCLUDE),
    "-I", str(Path(cuda.__file__).parent / "launcher"),
)  # fmt: skip
_RUNTIME = ("runtime.c", "collectives.c", "memory.c", "driver.c")
_KERNEL = re.compile(r"__global__ void (?:__launch_bounds__\((\d+)(?:, \d+)?\) )?(\w+)\(")


class _Library:
    """What every library of emulated kernels offers."""

    def __init__(self, path: Path) -> None:
        self._own = ctypes.CDLL(str(path))
        self._own.natc_set_order.argtypes = [ctypes.c_uint64]
        self._own.natc_set_off.restype = ctypes.c_char_p

    def run_in_order(self, order: int) -> None:
        """Choose how the threads of a block follow each other.

        order: 0 ascending, 1 descending, another number at random.
        """
        self._own.natc_set_order(order)

    def _show(self, arguments: Sequence[Any]) -> None:
        """Let the next kernel touch the memory of these tensors, and no other."""
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        starts = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        sizes = (ctypes.c_size_t * len(tensors))(*(t.numel() * t.element_size() for t in tensors))
        assert self._own.natc_set_tensors(len(tensors), starts, sizes) == 0


class Emulated(_Library):
    """Functions of a library, by the names of operations; they take tensors of the CPU."""

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        super().__init__(path)
        self._module = tvm_ffi.load_module(str(path))
        self._names = dict(names)

    def __getitem__(self, operation: str) -> Callable[..., None]:
        function = self._module[self._names[operation]]

        def call(*arguments: Any) -> None:
            self._show(arguments)
            function(*map(on_gpu, arguments))

        return call

    def in_orders(self, operation: str) -> Callable[..., None]:
        """Return a function that asserts that it does the same in whichever order threads run."""
        function = self[operation]

        def call(*arguments: Any) -> None:
            runs = []
            for order in (1, 20, 0):
                own = [a.clone() if order and isinstance(a, Tensor) else a for a in arguments]
                self.run_in_order(order)
                function(*own)
                runs.append([_bits(value) for value in own if isinstance(value, Tensor)])
            for earlier in runs[:-1]:
                assert all(map(torch.equal, earlier, runs[-1])), f"{operation}: order matters"

        return call


class EmulatedSource(_Library):
    """Kernels of CUDA C++ of one's own."""

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], *arguments: Any
    ) -> None:
        """Run a kernel; a tensor is passed as a pointer, an int as int, a float as float."""
        self._show(arguments)
        values = [
            ctypes.c_void_p(value.data_ptr())
            if isinstance(value, Tensor)
            else (ctypes.c_float if isinstance(value, float) else ctypes.c_int32)(value)
            for value in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        shapes = [(ctypes.c_uint32 * 3)(*s, *(1,) * (3 - len(s))) for s in (grid, block)]
        message = self._own.natc_set_off(name.encode(), *shapes, pointers)
        if message is not None:
            raise RuntimeError(message.decode())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.clone().view(torch.uint8)


def emulate(
    spec: KernelSpec,
    operations: Sequence[str],
    directory: Path,
    *,
    decisions: Mapping[str, int] | None = None,
    target: Target = GPU,
) -> Emulated:
    """Build operations of a CUDA kernel for the CPU; the result has a function for each.

    directory: for the library, which stays in use, and for intermediate files. decisions: of the
    forward's design space.
    """
    code = cuda.generate(spec, target, decisions or {}, directory, operations)
    names = {name: function_name(spec, name, target) for name in operations}
    return emulate_code(code, names, directory, target=target)


def emulate_code(
    code: cuda.Generated, names: Mapping[str, str], directory: Path, *, target: Target = GPU
) -> Emulated:
    """Build what natc generated for the CPU. names: the function of each operation."""
    image = directory / "image"
    image.write_bytes(b"emulated")
    compiled = cuda.Compiled(code.host_object, image, code.kernels)
    linked = cuda.launcher([compiled], directory, toolkit=())
    # In the place of cuda.c, which it includes.
    launcher = Path(shutil.copyfile(HERE / "launcher.c", directory / "launcher.c"))
    objects = [launcher, *(path for path in linked if path.name != "cuda.c")]
    exported = [f"__tvm_ffi_{name}" for name in names.values()]
    return Emulated(_link(code.source, objects, exported, directory), names)


def emulate_source(source: str, directory: Path) -> EmulatedSource:
    """Build CUDA C++ for the CPU; its kernels are `extern "C" __global__ void name(...)`."""
    return EmulatedSource(_link(source, [], [], directory))


def _link(source: str, objects: Sequence[Path], exported: Sequence[str], directory: Path) -> Path:
    """Compile CUDA C++ and link it with objects, and with the emulated driver."""
    library = directory / "emulated.so"
    link_library(
        library,
        [*objects, _compile_kernels(source, directory), *_runtime()],
        exported=[*exported, "natc_set_*"],
        directory=directory,
    )
    return library


def _compile_kernels(source: str, directory: Path) -> Path:
    """Compile CUDA C++ as C++, with a table of its kernels; return the object file."""
    most = {name: int(bound or 1024) for bound, name in _KERNEL.findall(source)}
    calls = "\n".join(
        f"static void natc_call_{name}(void **arguments) {{ natc_call({name}, arguments); }}"
        for name in most
    )
    table = ", ".join(f'{{"{name}", natc_call_{name}, {bound}}}' for name, bound in most.items())
    file = directory / "kernels.cu"
    file.write_text(
        f"""{source}
struct natc_emulated {{ const char *name; void (*call)(void **); int most_threads; }};
{calls}
extern "C" const natc_emulated natc_emulated_kernels[] = {{{table}}};
extern "C" const int natc_num_emulated = {len(most)};
"""
    )
    return _compile(file, _KERNEL_OPTIONS, directory)


@functools.cache
def _runtime() -> list[Path]:
    """Return the objects of the emulated driver, compiled once."""
    directory = Path(tempfile.mkdtemp(prefix="natc-emulator"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    options = ("-O2", "-std=c11", "-fvisibility=hidden")
    return [_compile(HERE / file, options, directory) for file in _RUNTIME]


def _compile(file: Path, options: Sequence[str], directory: Path) -> Path:
    result = directory / f"{file.stem}.o"
    command = (
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        f"{host_machine()}-linux-gnu.2.28",
    )
    # Without -g0, zig's debug information takes most of the time.
    own = ("-g0", "-w", "-fPIC", "-fno-stack-protector")
    run(
        [*command, *own, *options, "-c", "-o", str(result), str(file)],
        f"compiling {file.name} for emulation",
        **zig_caches(directory),
    )
    return result
