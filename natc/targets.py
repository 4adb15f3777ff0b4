"""The targets that kernels are compiled for: the table of architectures, names and parsing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from natc.errors import TargetError


@dataclass(frozen=True, slots=True)
class Arch:
    """An architecture that natc compiles for: an entry of `_TABLE`.

    vector_bytes: bytes that one vector register (llvm) or one thread's widest load (cuda) holds.
    processor: the machine's name in ELF files and compilers' triples; "" for a GPU.
    features: LLVM's names of features beyond those of the CPU `name` (or of the processor).
    shared_kib: shared memory that one block may have on a GPU (CUDA C++ programming guide, table
        "Technical specifications per compute capability").
    is_tegra: whether CUDA's binary compatibility between minor versions excludes it.
    """

    kind: str
    name: str
    vector_bytes: int = 16
    processor: str = ""
    features: tuple[str, ...] = ()
    shared_kib: int = 0
    is_tegra: bool = False


# Oldest first within a kind.
_TABLE = (
    Arch("llvm", "x86-64-v2", processor="x86_64"),
    Arch("llvm", "x86-64-v3", processor="x86_64", vector_bytes=32),
    Arch("llvm", "x86-64-v4", processor="x86_64", vector_bytes=64),
    Arch("llvm", "aarch64", processor="aarch64", features=("+neon",)),
    Arch("cuda", "sm_80", shared_kib=163),
    Arch("cuda", "sm_86", shared_kib=99),
    Arch("cuda", "sm_87", shared_kib=163, is_tegra=True),
    Arch("cuda", "sm_89", shared_kib=99),
    Arch("cuda", "sm_90", shared_kib=227),
    Arch("cuda", "sm_100", shared_kib=227),
    Arch("cuda", "sm_103", shared_kib=227),
    Arch("cuda", "sm_120", shared_kib=99),
)
_BY_NAME = {(entry.kind, entry.name): entry for entry in _TABLE}
LLVM_ARCHS = tuple(entry.name for entry in _TABLE if entry.kind == "llvm")
CUDA_ARCHS = tuple(entry.name for entry in _TABLE if entry.kind == "cuda")
ARCHS = {"llvm": LLVM_ARCHS, "cuda": CUDA_ARCHS}
# Names of a compute capability: 9.0, 9.0a, sm_90a, sm_120f. The suffix a stands for code of one
# architecture alone, f for its family; natc's kernels need neither.
_CAPABILITY = re.compile(r"(?:sm_(?P<both>\d{2,3})|(?P<major>\d{1,2})\.(?P<minor>\d))[af]?")


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to compile for: kind `llvm` or `cuda`, arch a name in `ARCHS[kind]`.

    Raises TargetError for any other value.
    """

    kind: str
    arch: str

    def __post_init__(self) -> None:
        if self.kind not in ARCHS:
            raise TargetError(f"target {self.kind!r} is unknown; it must be llvm or cuda.")
        if self.arch not in ARCHS[self.kind]:
            raise TargetError(
                f"architecture {self.arch!r} is unknown for target {self.kind}; "
                f"it must be one of {', '.join(ARCHS[self.kind])}."
            )

    @property
    def name(self) -> str:
        """The name used for files, such as `llvm-x86-64-v3` or `cuda-sm_90`."""
        return f"{self.kind}-{self.arch}"

    def __str__(self) -> str:
        return self.name

    @property
    def properties(self) -> Arch:
        """The architecture's entry in the table."""
        return _BY_NAME[self.kind, self.arch]

    @property
    def vector_bytes(self) -> int:
        """Bytes that one vector register (llvm) or one thread's widest load (cuda) holds."""
        return self.properties.vector_bytes

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor) of a cuda target: sm_90 is (9, 0); raises TargetError for llvm."""
        if self.kind != "cuda":
            raise TargetError(f"target {self.name} has no compute capability.")
        number = int(self.arch.removeprefix("sm_"))
        return number // 10, number % 10

    def runs_on(self, machine: Target) -> bool:
        """Return whether code for this target runs on a machine whose own target is `machine`."""
        if self == machine:
            return True
        if self.kind != machine.kind:
            return False
        if self.kind == "cuda":
            major, minor = self.compute_capability
            machine_major, machine_minor = machine.compute_capability
            is_tegra = self.properties.is_tegra or machine.properties.is_tegra
            return major == machine_major and minor <= machine_minor and not is_tegra
        if self.properties.processor != machine.properties.processor:
            return False
        return LLVM_ARCHS.index(self.arch) <= LLVM_ARCHS.index(machine.arch)

    @classmethod
    def parse(cls, text: str, arch: str | None = None) -> Target:
        """Return the target that `llvm`, `cuda` or a full name such as `cuda-sm_90` stands for.

        arch: the architecture of a bare kind; `natc.host.detect.parse_target` finds this
        machine's own. Raises TargetError for an unknown name, for two architectures that differ,
        and for a bare kind without an arch.
        """
        arch = None if arch is None else cuda_arch_named(arch)
        if text not in ARCHS:
            kind, _, own = text.partition("-")
            own = cuda_arch_named(own) if kind == "cuda" else own
            if kind not in ARCHS or own not in ARCHS[kind]:
                names = [f"{k}-{a}" for k, archs in ARCHS.items() for a in archs]
                raise TargetError(
                    f"target {text!r} is unknown; it must be llvm, cuda, or one of "
                    f"{', '.join(names)}."
                )
            if arch not in (None, own):
                raise TargetError(
                    f"target {text!r} and architecture {arch!r} differ; give one of them."
                )
            return cls(kind, own)
        if arch is None:
            raise TargetError(
                f"target {text!r} needs an architecture, one of {', '.join(ARCHS[text])}."
            )
        return cls(text, arch)


def parse_archs(text: str) -> tuple[str, ...]:
    """Return the CUDA architectures in `sm_80,9.0a`, oldest first, each once.

    Raises TargetError for an unknown one or an empty list.
    """
    archs = {cuda_arch_named(part.strip()) for part in text.split(",") if part.strip()}
    if not archs:
        raise TargetError(f"no architecture in {text!r}; write for example sm_80,sm_90.")
    for arch in sorted(archs):
        Target("cuda", arch)
    return tuple(sorted(archs, key=CUDA_ARCHS.index))


def cuda_arch_named(text: str) -> str:
    """Return the architecture whose code runs on a named compute capability, such as `12.1a`.

    Any other text is returned as it is, and so is a capability that no code serves.
    """
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        return text
    number = int(match["both"] or match["major"] + match["minor"])
    try:
        return cuda_target_for(divmod(number, 10)).arch
    except TargetError:
        return text


def cuda_target_for(capability: tuple[int, int]) -> Target:
    """Return the newest cuda target whose code runs on a GPU of this (major, minor).

    Raises TargetError when none does.
    """
    major, minor = capability
    exact = f"sm_{major}{minor}"
    if exact in CUDA_ARCHS:
        return Target("cuda", exact)
    for arch in reversed(CUDA_ARCHS):
        target = Target("cuda", arch)
        target_major, target_minor = target.compute_capability
        if target_major == major and target_minor < minor and not target.properties.is_tegra:
            return target
    raise TargetError(
        f"the GPU has compute capability {major}.{minor}; natc compiles for "
        f"{', '.join(CUDA_ARCHS)}."
    )
