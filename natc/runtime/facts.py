"""The facts about a device on which the choice of a kernel depends."""

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
    """The facts about a device.

    device: its name, for messages. machine: the target whose code it runs best, or None if natc
    compiles no code for it; then problem says why. capability: compute capability (major, minor)
    of an NVIDIA GPU, also of one for which natc compiles no code. glibc: version of the C
    library, (2, 28) for example; None if it does not matter.
    """

    device: str
    machine: Target | None
    problem: str = ""
    capability: tuple[int, int] | None = None
    glibc: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.device} ({self.machine.name if self.machine else 'no target'})"


def facts_of(target: Target) -> Facts:
    """Return the facts of a machine that is exactly `target`."""
    if target.kind == "llvm":
        return Facts("cpu", target)
    return Facts("cuda", target, capability=target.compute_capability)


def this_machine() -> dict[str, Facts]:
    """Return the facts of this machine's CPU, `llvm`, and of its first GPU, `cuda`.

    If there is no GPU, or natc does not compile for it, `problem` says so. Needs no torch.
    """
    glibc = detect.this_glibc()
    try:
        cpu = Facts("cpu", detect_host_cpu(), glibc=glibc)
    except TargetError as error:
        cpu = Facts("cpu", None, str(error))
    gpus = gpu.driver().gpus
    if not gpus:
        problem = "this machine has no NVIDIA GPU, or its driver does not answer."
        return {"llvm": cpu, "cuda": Facts("cuda", None, problem)}
    capability = gpus[0].capability
    try:
        target = cuda_target_for(capability)
        return {"llvm": cpu, "cuda": Facts("cuda", target, "", capability, glibc)}
    except TargetError as error:
        return {"llvm": cpu, "cuda": Facts("cuda", None, str(error), capability, glibc)}


def device_facts(device: torch.device) -> Facts:
    """Return the facts of a torch device; `problem` is set if natc compiles no code for it."""
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
