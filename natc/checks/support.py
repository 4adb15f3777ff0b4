"""Which features run on kernels, and which on the reference: found by making the calls.

Each row is a call, small, made through natc's public functions while every kernel that natc can
compile for a target stands in for itself: `natc.runtime.registry.resolved` answers as if all of
them were built, and a kernel writes zeros and leaves its name. So the table is what the dispatch
code does, not what somebody wrote down; `natc.operations` says which kernels there are. Calls run
on the CPU for either target: what a target changes is which kernels exist for it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from natc import reference
from natc.checks.support_calls import ROWS, Call
from natc.errors import NatcError, NotCoveredError, SpecError
from natc.operations import OPERATIONS, operations_of
from natc.runtime import registry
from natc.runtime.load import Kernel
from natc.spec import RANKS, KernelSpec, compiles

TARGETS = ("llvm", "cuda")
KERNEL, COMPOSITION, REFERENCE, REFUSED = "kernel", "composition", "reference", "refused"

# Attention that torch computes, beside what a kernel does, has one of these in it.
_PRODUCTS = frozenset(("mm", "bmm", "addmm", "baddbmm", "_softmax", "logsumexp", "exp"))


@dataclass(frozen=True, slots=True)
class Cell:
    """What serves one feature, for one rank and target.

    served_by: `kernel`; `composition`: kernels joined by products or softmaxes that torch
        computes; `reference`; or `refused`, where the call raises an error.
    operations: the kernels' operations that ran, in the order of `natc.operations`.
    """

    feature: str
    rank: int
    target: str
    served_by: str
    operations: tuple[str, ...]


def table() -> list[Cell]:
    """Return a cell for every feature, rank and target, feature by feature."""
    return [
        _cell(feature, call, rank, target)
        for feature, call in ROWS.items()
        for rank in RANKS
        for target in TARGETS
    ]


class Seen:
    """What a call ran so far."""

    def __init__(self) -> None:
        self.operations: set[str] = set()
        self.reference = False
        self.products = False

    def clear(self) -> None:
        """Forget it: what ran until now only prepared what the row is about."""
        self.__init__()  # type: ignore[misc]

    @property
    def served_by(self) -> str:
        """The word for it, as in Cell."""
        if self.reference or not self.operations:
            return REFERENCE
        return COMPOSITION if self.products else KERNEL


def _cell(feature: str, call: Call, rank: int, target: str) -> Cell:
    seen = Seen()
    with _stand_ins(target, seen), _reference_watched(seen), _Products(seen):
        try:
            call(rank, seen.clear)
        except NotCoveredError:
            # The user's NATC_STRICT forbids what would run.
            seen.reference = True
        except NatcError:
            return Cell(feature, rank, target, REFUSED, ())
    operations = tuple(name for name in OPERATIONS if name in seen.operations)
    return Cell(feature, rank, target, seen.served_by, operations)


class _StandIns(dict[Any, Any]):
    """Takes the place of `registry.resolved`: every kernel of a target is there."""

    def __init__(self, target: str, seen: Seen) -> None:
        super().__init__()
        self.target = target
        self.seen = seen

    def __missing__(self, key: registry.Key) -> Kernel | None:
        operation, kernel_size, head_dim, dtype, rpb, value_dim, _ = key
        name = str(dtype).removeprefix("torch.")
        try:
            spec = KernelSpec(len(kernel_size), kernel_size, head_dim, name, rpb, value_dim)
        except SpecError:
            return None
        if operation not in operations_of(spec):
            return None
        if not compiles(spec.dtype, self.target):
            return None

        def run(*arguments: Any) -> None:
            self.seen.operations.add(operation)
            tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
            for result in tensors[-len(OPERATIONS[operation].results) :]:
                result.zero_()

        return Kernel(run, 1, None)  # type: ignore[arg-type]


@contextlib.contextmanager
def _stand_ins(target: str, seen: Seen) -> Iterator[None]:
    before = registry.resolved, set(registry.warned)
    registry.resolved = _StandIns(target, seen)  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # A call on the reference is a row here, and nothing that went wrong.
            warnings.simplefilter("ignore")
            yield
    finally:
        registry.resolved = before[0]
        # A warning that nobody saw is to be given when its call is made.
        registry.warned.clear()
        registry.warned.update(before[1])


@contextlib.contextmanager
def _reference_watched(seen: Seen) -> Iterator[None]:
    """Note when the reference runs, whoever calls it."""

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in _REFERENCE:
            seen.reference = True

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


_REFERENCE = frozenset(getattr(reference, name).__code__ for name in reference.__all__)


class _Products(TorchDispatchMode):
    """Notes products and softmaxes that run outside of natc's operators."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _PRODUCTS:
            self.seen.products = True
        return func(*args, **(kwargs or {}))
