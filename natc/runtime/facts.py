"""What a device can run: the facts that the choice of a kernel depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from natc.errors import TargetError
from natc.host import detect, gpu
from natc.host.detect import detect_host_cpu
from natc.targets import Target, cuda_target_for

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Facts:
    """device: the device's name for messages; machine: the target whose code it runs best.

    machine is None where natc compiles no code for the device; problem then says why.
    capability: compute capability (major, minor) of an NVIDIA GPU, natc's target or not.
    glibc: version of the C library that is there, (2, 28) for example; None where any may be.
    """

    device: str
    machine: Target | None
    problem: str = ""
    capability: tuple[int, int] | None = None
    glibc: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.device} ({self.machine.name if self.machine else 'no target'})"


def facts_of(target: Target) -> Facts:
    """Return the facts of a machine that is just what code for a target is made for."""
    if target.kind == "llvm":
        return Facts("cpu", target)
    return Facts("cuda", target, capability=target.compute_capability)


def this_machine() -> dict[str, Facts]:
    """Return the facts of this machine's CPU, `llvm`, and of its first GPU, `cuda`.

    Where there is no GPU, or none that natc compiles for, the facts say so. Needs no torch.
    """
    glibc = detect.this_glibc()
    try:
        cpu = Facts("cpu", detect_host_cpu(), glibc=glibc)
    except TargetError as error:
        cpu = Facts("cpu", None, str(error))
    found = gpu.driver().gpus
    if not found:
        problem = "this machine has no NVIDIA GPU, or its driver does not answer."
        return {"llvm": cpu, "cuda": Facts("cuda", None, problem)}
    capability = found[0].capability
    try:
        target = cuda_target_for(capability)
        return {"llvm": cpu, "cuda": Facts("cuda", target, "", capability, glibc)}
    except TargetError as error:
        return {"llvm": cpu, "cuda": Facts("cuda", None, str(error), capability, glibc)}


def device_facts(device: torch.device) -> Facts:
    """Return the facts of a torch device; a device that natc does not serve is not an error."""
    import torch

    name = str(device)
    capability = None
    try:
        if device.type == "cpu":
            return Facts(name, detect_host_cpu(), glibc=detect.this_glibc())
        if device.type == "cuda" and torch.version.hip is None:
            capability = torch.cuda.get_device_capability(device)
            return Facts(name, cuda_target_for(capability), "", capability, detect.this_glibc())
    except TargetError as error:
        return Facts(name, None, str(error), capability, detect.this_glibc())
    kind = "AMD GPUs" if device.type == "cuda" else f"{device.type} devices"
    return Facts(name, None, f"natc compiles for x86-64, aarch64 and NVIDIA GPUs, not for {kind}.")
