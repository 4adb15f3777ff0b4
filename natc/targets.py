"""Targets: which machine a kernel is compiled for; parsed and named."""

from __future__ import annotations

from dataclasses import dataclass

from natc.errors import TargetError

LLVM_ARCHS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64")
CUDA_ARCHS = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
ARCHS = {"llvm": LLVM_ARCHS, "cuda": CUDA_ARCHS}

_VECTOR_BYTES = {"x86-64-v2": 16, "x86-64-v3": 32, "x86-64-v4": 64, "aarch64": 16}

# Code for these runs on the same architecture only (CUDA binary compatibility excludes Tegra).
_TEGRA = frozenset(("sm_87",))


@dataclass(frozen=True, slots=True)
class Target:
    """One machine to compile for: kind `llvm` or `cuda`, arch one of `ARCHS[kind]`.

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
    def vector_bytes(self) -> int:
        """Bytes that one vector register (llvm) or one thread's widest load (cuda) holds."""
        return _VECTOR_BYTES.get(self.arch, 16)

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor) of a cuda target: sm_90 is (9, 0); raises TargetError for llvm."""
        if self.kind != "cuda":
            raise TargetError(f"target {self.name} has no compute capability.")
        number = int(self.arch.removeprefix("sm_"))
        return number // 10, number % 10

    def runs_on(self, machine: Target) -> bool:
        """Return whether code for this target runs on a machine that is `machine`."""
        if self == machine:
            return True
        if self.kind != machine.kind:
            return False
        if self.kind == "cuda":
            major, minor = self.compute_capability
            other = machine.compute_capability
            tegra = self.arch in _TEGRA or machine.arch in _TEGRA
            return major == other[0] and minor <= other[1] and not tegra
        if "aarch64" in (self.arch, machine.arch):
            return False
        return LLVM_ARCHS.index(self.arch) <= LLVM_ARCHS.index(machine.arch)

    @classmethod
    def parse(cls, text: str, arch: str | None = None) -> Target:
        """Return the target that `llvm`, `cuda` or a full name such as `cuda-sm_90` stands for.

        arch: the architecture of a bare kind; `natc.host.detect.parse_target` finds this
        machine's own. Raises TargetError for an unknown name, for two architectures that differ,
        and for a bare kind without an arch.
        """
        if text not in ARCHS:
            kind, _, own = text.partition("-")
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
    """Return the CUDA architectures in `sm_80,sm_90`, oldest first, each once.

    Raises TargetError for an unknown one or an empty list.
    """
    archs = {part.strip() for part in text.split(",") if part.strip()}
    if not archs:
        raise TargetError(f"no architecture in {text!r}; write for example sm_80,sm_90.")
    for arch in sorted(archs):
        Target("cuda", arch)
    return tuple(sorted(archs, key=CUDA_ARCHS.index))


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
        have = target.compute_capability
        if have[0] == major and have[1] < minor and arch not in _TEGRA:
            return target
    raise TargetError(
        f"the GPU has compute capability {major}.{minor}; natc compiles for "
        f"{', '.join(CUDA_ARCHS)}."
    )
