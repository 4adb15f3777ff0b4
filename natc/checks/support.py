"""Which calls natc supports with kernels, and which of those kernels are installed here.

The table of supported calls is computed by making them. Each row is a small call through natc's
public functions, while a stand-in answers for every kernel that natc can compile for a
target: it writes zeros and notes its operation. Nothing is compiled, and calls for either target
run on the CPU: a target only decides which kernels there are (`natc.operations`). What is
installed is asked of `natc.runtime`, which knows the libraries of this machine.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from natc import reference, runtime
from natc.checks.support_calls import KINDS, ROWS, Call
from natc.errors import NatcError, NotCoveredError, SpecError
from natc.operations import OPERATIONS, operations_of
from natc.runtime import registry
from natc.runtime.load import Kernel
from natc.spec import RANKS, KernelSpec, compiles

TARGETS = ("llvm", "cuda")
KERNEL, COMPOSITION, REFERENCE, REFUSED = "kernel", "composition", "reference", "refused"

# Attention that torch computes beside a kernel calls some of these operators.
_PRODUCTS = frozenset(("mm", "bmm", "addmm", "baddbmm", "_softmax", "logsumexp", "exp"))


@dataclass(frozen=True, slots=True)
class Cell:
    """How natc supports one feature, for one rank and target, and whether it is installed here.

    supported: `kernel`; `composition`: kernels joined by products or softmaxes that torch
        computes; `reference`; or `refused`, if the call raises an error.
    operations: the operations of kernels that the call needs, in the order of `natc.operations`.
    installed: whether libraries on this machine have these operations, for some kernel that the
        feature is about (`support_calls.KINDS`), and run here.
    """

    feature: str
    rank: int
    target: str
    supported: str
    operations: tuple[str, ...]
    installed: bool = False


def table() -> list[Cell]:
    """Return a cell for every feature, rank and target, feature by feature."""
    kernels = {target: _usable(target) for target in TARGETS}
    cells = [
        _cell(feature, call, rank, target)
        for feature, call in ROWS.items()
        for rank in RANKS
        for target in TARGETS
    ]
    return [replace(cell, installed=_installed(cell, kernels[cell.target])) for cell in cells]


def _usable(target: str) -> dict[KernelSpec, set[str]]:
    """Return the operations, by spec, of the kernels that this machine has and runs."""
    facts = runtime.this_machine()[target]
    return {
        spec: {
            name
            for name in operations_of(spec, kind=target)
            if runtime.explain(spec, facts, operation=name).choice is not None
        }
        for spec in {library.spec for library in runtime.kernels()}
    }


def _installed(cell: Cell, kernels: Mapping[KernelSpec, set[str]]) -> bool:
    """Return whether kernels of some spec have all operations that a cell's calls need."""
    fits = KINDS.get(cell.feature, lambda spec: True)
    for spec, operations in kernels.items():
        needed = set(cell.operations) & set(operations_of(spec, kind=cell.target))
        if spec.rank == cell.rank and fits(spec) and needed and needed <= operations:
            return cell.supported in (KERNEL, COMPOSITION)
    return False


class Seen:
    """Notes about a call: the kernels' operations, the reference and products that ran so far."""

    def __init__(self) -> None:
        self.operations: set[str] = set()
        self.reference = False
        self.products = False

    def clear(self) -> None:
        """Forget what ran: it only prepared the step that the row is about."""
        self.__init__()  # type: ignore[misc]

    @property
    def supported(self) -> str:
        """The word for what ran, as in Cell."""
        if self.reference or not self.operations:
            return REFERENCE
        return COMPOSITION if self.products else KERNEL


def _cell(feature: str, call: Call, rank: int, target: str) -> Cell:
    seen = Seen()
    with _stand_ins(target, seen), _reference_watched(seen), _Products(seen):
        try:
            call(rank, seen.clear)
        except NotCoveredError:
            # The user's NATC_STRICT forbids the reference, which would run.
            seen.reference = True
        except NatcError:
            return Cell(feature, rank, target, REFUSED, ())
    operations = tuple(name for name in OPERATIONS if name in seen.operations)
    return Cell(feature, rank, target, seen.supported, operations)


class _StandIns(dict[Any, Any]):
    """Replaces `registry.resolved`: answers for every kernel that natc compiles for a target."""

    def __init__(self, target: str, seen: Seen) -> None:
        super().__init__()
        self.target = target
        self.seen = seen

    def __missing__(self, key: registry.KernelKey) -> Kernel | None:
        operation = key.operation
        try:
            spec = key.spec()
        except SpecError:
            return None
        if operation not in operations_of(spec, kind=self.target) or not compiles(
            spec.dtype, self.target
        ):
            return None

        def run(*arguments: Any) -> None:
            self.seen.operations.add(operation)
            tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
            for result in tensors[-len(OPERATIONS[operation].results_of(spec.rpb)) :]:
                result.zero_()

        return Kernel(run, 1, None)  # type: ignore[arg-type]


@contextlib.contextmanager
def _stand_ins(target: str, seen: Seen) -> Iterator[None]:
    before = registry.resolved, set(registry.warned)
    registry.resolved = _StandIns(target, seen)  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # A call on the reference is a row of the table, not a problem.
            warnings.simplefilter("ignore")
            yield
    finally:
        registry.resolved = before[0]
        # Nobody saw these warnings: the user's own calls give them again.
        registry.warned.clear()
        registry.warned.update(before[1])


@contextlib.contextmanager
def _reference_watched(seen: Seen) -> Iterator[None]:
    """Set `seen.reference` when a function of the reference runs, whoever calls it."""

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
    """Sets `seen.products` when a product or softmax runs outside of natc's operators."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _PRODUCTS:
            self.seen.products = True
        return func(*args, **(kwargs or {}))
