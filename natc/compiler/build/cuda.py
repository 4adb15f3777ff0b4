"""Kernels for GPUs: machine code of several architectures and a launcher in one shared library.

Needs the CUDA toolkit and no GPU. Each architecture has its own schedule, host code and device
image.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import tvm
from tvm.ir import IRModule
from tvm.tirx.build import codegen_build, split_host_device_mods

from natc.compiler.build.lower import StageSizesKnown, compiler_target, entry_module
from natc.errors import BuildError
from natc.host.c_compiler import cuda_version, link_library, run
from natc.host.toolchain import find_nvcc
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.targets import Target

# Device functions that kernels may call; the compiler drops functions that no kernel calls.
_HEADER = "mma.cuh"
_INCLUDE = f'#include "{_HEADER}"\n'

# The launcher's code for each type of a kernel parameter, and for each launch parameter.
_TYPES = {"int32": "i", "int64": "l", "float32": "f", "float64": "d"}
_LAUNCH = {
    name: index
    for index, name in enumerate(
        [f"{kind}Idx.{axis}" for kind in ("block", "thread") for axis in "xyz"]
    )
}


@dataclass(frozen=True)
class DeviceKernel:
    """A kernel as the launcher sees it: its name, parameter types and launch parameters."""

    name: str
    params: str
    launch: tuple[int, ...]


@dataclass(frozen=True)
class Generated:
    """One architecture's code before nvcc: CUDA source, its kernels, and compiled host code."""

    source: str
    kernels: tuple[DeviceKernel, ...]
    host_object: Path


@dataclass(frozen=True)
class Compiled:
    """One architecture's code: host code, a device image, and the kernels in it."""

    host_object: Path
    image: Path
    kernels: tuple[DeviceKernel, ...]


def build_cuda(
    spec: KernelSpec,
    decisions: Mapping[Target, Mapping[str, int]],
    output: Path,
    directory: Path,
    *,
    entries: Sequence[str],
    portable: bool = False,
) -> None:
    """Compile a kernel for each target into the shared library `output`.

    entries: names of operations. directory: for intermediate files. portable: see `link_library`.
    Raises BuildError or CompilerNotFound.
    """
    compiled = [
        compile_arch(
            spec, target, chosen, directory, entries, with_ptx=target == newest(decisions)
        )
        for target, chosen in decisions.items()
    ]
    names = [function_name(spec, entry, target) for entry in entries for target in decisions]
    link_library(
        output,
        launcher(compiled, directory, toolkit=cuda_version()),
        exported=[f"__tvm_ffi_{name}" for name in names],
        directory=directory,
        portable=portable,
    )


def newest(targets: Iterable[Target]) -> Target:
    """Return the newest of some architectures, the one for which a library also holds PTX."""
    return max(targets, key=lambda target: target.compute_capability)


def compile_arch(
    spec: KernelSpec,
    target: Target,
    decisions: Mapping[str, int],
    directory: Path,
    entries: Sequence[str],
    *,
    with_ptx: bool = False,
) -> Compiled:
    """Compile entries for one architecture; raise BuildError or CompilerNotFound.

    with_ptx: add PTX, which drivers of newer GPUs compile when they load it.
    """
    code = generate(spec, target, decisions, directory, entries)
    copy_header(directory)
    source = directory / f"{target.arch}.cu"
    source.write_text(code.source)
    image = directory / f"{target.arch}.fatbin"
    virtual = target.arch.replace("sm_", "compute_")
    codes = f"[{target.arch},{virtual}]" if with_ptx else target.arch
    messages = run(
        [
            find_nvcc(),
            f"-gencode=arch={virtual},code={codes}",
            _compression(),
            # ptxas then reports each kernel's registers (`natc.compiler.build.resources`).
            "-Xptxas=-v",
            *("-O3", "-fatbin", "-w", "-o", str(image), str(source)),
        ],
        f"compiling CUDA code for {target.arch}",
    )
    (directory / f"{target.arch}.ptxas").write_text(messages)
    return Compiled(code.host_object, image, code.kernels)


def generate(
    spec: KernelSpec,
    target: Target,
    decisions: Mapping[str, int],
    directory: Path,
    entries: Sequence[str],
) -> Generated:
    """Generate the CUDA source of entries for one architecture, and compile their host code.

    directory: where the host code is written. Raises BuildError.
    """
    names = {entry: function_name(spec, entry, target) for entry in entries}
    host, device = lower(entry_module(spec, target, decisions, names), target)
    kernels = tuple(
        _device_kernel(var.name_hint, function) for var, function in device.functions.items()
    )
    whole = compiler_target(target)
    source = cuda_source(device, target)
    host_object = directory / f"{target.arch}.o"
    codegen_build(host, whole.host).write_to_file(str(host_object), "o")
    return Generated(source, kernels, host_object)


def cuda_source(device: IRModule, target: Target) -> str:
    """Return the CUDA source of finished device functions."""
    return _INCLUDE + str(codegen_build(device, compiler_target(target)).inspect_source("cuda"))


def copy_header(directory: Path) -> None:
    """Copy the header that CUDA sources include into a directory."""
    _copy(_HEADER, directory)


def launcher(
    compiled: Sequence[Compiled], directory: Path, *, toolkit: tuple[int, ...]
) -> list[Path]:
    """Write the launcher's C files; return the files to link into a library.

    toolkit: the version of CUDA that compiled the images.
    """
    (directory / "kernels.h").write_text(_header(compiled, toolkit))
    (directory / "kernels.c").write_text(_table(compiled))
    _copy("cuda.c", directory)
    return [
        directory / "cuda.c",
        directory / "kernels.c",
        *(code.host_object for code in compiled),
    ]


def _copy(name: str, directory: Path) -> None:
    with resources.as_file(resources.files("natc.compiler.build") / "launcher" / name) as source:
        shutil.copyfile(source, directory / name)


def _compression() -> str:
    """Return the option of nvcc for the smallest images that its own drivers can read.

    Drivers of CUDA 12.4 and later can decompress the mode `size` (documentation of nvcc,
    "--compress-mode"): all drivers that run code of CUDA 13, but not all that run code of CUDA 12.
    """
    return "--compress-mode=size" if cuda_version() >= (13,) else "-Xfatbin=-compress-all"


def lower(module: IRModule, target: Target) -> tuple[IRModule, IRModule]:
    """Return host and device functions of a module, ready for code generation."""
    host, device = split(module, target)
    whole = compiler_target(target)
    _, finish_host, _ = tvm.tirx.get_default_tir_pipeline(whole)
    with whole, tvm.transform.PassContext(instruments=[StageSizesKnown()]):
        return finish_host()(host), device


def split(module: IRModule, target: Target) -> tuple[IRModule, IRModule]:
    """Return host functions, whose launches can still be read, and finished device functions."""
    whole = compiler_target(target)
    pipeline, _, finish_device = tvm.tirx.get_default_tir_pipeline(whole)
    with whole, tvm.transform.PassContext(instruments=[StageSizesKnown()]):
        module = pipeline(tvm.tirx.transform.BindTarget(whole)(module))
        host, devices = split_host_device_mods(module)
        (device,) = devices.values()
        return host, finish_device()(device)


def _device_kernel(name: str, function: tvm.tirx.PrimFunc) -> DeviceKernel:
    params = "".join(_parameter_type(name, parameter) for parameter in function.params)
    launch = []
    for tag in function.attrs["tirx.kernel_launch_params"]:
        if str(tag) not in _LAUNCH:
            raise BuildError(f"kernel {name} needs {tag}, which the launcher does not offer.")
        launch.append(_LAUNCH[str(tag)])
    return DeviceKernel(name, params, tuple(launch))


def _parameter_type(kernel: str, parameter: tvm.tirx.Var) -> str:
    if tvm.tirx.is_buffer_var(parameter) or "handle" in str(parameter.ty):
        return "p"
    dtype = str(parameter.ty).removeprefix("T.")
    if dtype not in _TYPES:
        raise BuildError(f"kernel {kernel} takes a {dtype}, which the launcher cannot pass.")
    return _TYPES[dtype]


def _header(compiled: Sequence[Compiled], toolkit: tuple[int, ...]) -> str:
    kernels = [kernel for code in compiled for kernel in code.kernels]
    major, minor = (*toolkit, 0, 0)[:2]
    return f"""/* Generated: the kernels of this library. */
#define TOOLKIT {1000 * major + 10 * minor}
#define NUM_IMAGES {len(compiled)}
#define NUM_KERNELS {len(kernels)}
#define NUM_LAUNCH {len(_LAUNCH)}
#define MAX_PARAMS {max(len(kernel.params) for kernel in kernels)}
typedef struct {{
  const char *name;
  int image;
  int num_params;
  const char *params;
  int num_launch;
  int launch[NUM_LAUNCH];
}} natc_kernel;
extern const natc_kernel natc_kernels[NUM_KERNELS];
extern const unsigned char *const natc_images[NUM_IMAGES];
"""


def _table(compiled: Sequence[Compiled]) -> str:
    lines = ['#include "kernels.h"']
    for index, code in enumerate(compiled):
        numbers = ",".join(map(str, code.image.read_bytes()))
        # The section in which CUDA's own tools look for machine code.
        lines.append(f"static const unsigned char image_{index}[]")
        lines.append(f'    __attribute__((section(".nv_fatbin"), aligned(8))) = {{{numbers}}};')
    names = ", ".join(f"image_{index}" for index in range(len(compiled)))
    lines.append(f"const unsigned char *const natc_images[NUM_IMAGES] = {{{names}}};")
    lines.append("const natc_kernel natc_kernels[NUM_KERNELS] = {")
    for index, code in enumerate(compiled):
        for kernel in code.kernels:
            launch = ", ".join(map(str, kernel.launch))
            lines.append(
                f'    {{"{kernel.name}", {index}, {len(kernel.params)}, "{kernel.params}", '
                f"{len(kernel.launch)}, {{{launch}}}}},"
            )
    lines.append("};")
    return "\n".join(lines) + "\n"
