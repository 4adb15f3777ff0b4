"""The kernels of this process: the scan of libraries, loaded functions, and explanations."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from natc import env
from natc.errors import ArgumentError, SpecError
from natc.operations import OPERATIONS
from natc.runtime import jit
from natc.runtime.commands import build_command
from natc.runtime.facts import Facts, device_facts
from natc.runtime.load import Kernel, load
from natc.runtime.scan import Library, Rejection, Scan, scan
from natc.runtime.select import Choice, select
from natc.runtime.trust import noexec
from natc.spec import KernelSpec, compiles
from natc.store import workspace

if TYPE_CHECKING:
    import torch

_lock = threading.RLock()
_scan: Scan | None = None

# These read no bias, so that kernels with and without a bias have the same: either will do.
_EITHER = frozenset(
    name
    for name, operation in OPERATIONS.items()
    if "rpb" not in operation.tensors and not operation.needs_rpb
)


class KernelKey(NamedTuple):
    """What decides which kernel serves a call.

    operation: a name of `natc.operations`; rpb: whether the call has a relative positional bias;
    terms: names of `natc.spec.TERMS`, which the call has.
    """

    operation: str
    kernel_size: tuple[int, ...]
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    rpb: bool
    device: torch.device
    terms: tuple[str, ...] = ()

    @property
    def dtype_name(self) -> str:
        """The dtype as specs write it: `float32`."""
        return str(self.dtype).removeprefix("torch.")

    def spec(self) -> KernelSpec:
        """Return the spec of the kernel; raises SpecError if there can be no such kernel."""
        return KernelSpec(
            len(self.kernel_size), self.kernel_size, self.head_dim, self.dtype_name, self.rpb,
            self.value_dim, self.terms,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a spec has a kernel on a device, or has none.

    facts: the device and its target. directories: searched, in this order. choice: the kernel's
    library, or None. rejections: libraries passed over and bad manifests. command: the command
    line that builds the kernel, or None if natc cannot. not_built: the reason why a call does not
    build the kernel, or None if it does.
    """

    spec: KernelSpec
    operation: str
    facts: Facts
    directories: tuple[Path, ...]
    choice: Choice | None
    rejections: tuple[Rejection, ...]
    command: str | None
    not_built: str | None = None

    def __str__(self) -> str:
        what = f"{self.operation} of {self.spec.name} on {self.facts}"
        if self.choice is None:
            lines = [f"no kernel covers {what}"]
        else:
            lines = [f"{what} runs {self.choice.function} of {self.choice.library.path}"]
        for directory in self.directories:
            note = "" if directory.is_dir() else " (does not exist)"
            lines.append(f"  searched {directory}{note}")
        lines += [f"  rejected {item.path}: {item.reason}" for item in self.rejections]
        if self.facts.problem:
            lines.append(f"  {self.facts.problem}")
        if self.choice is None and self.command is not None:
            if self.not_built is not None:
                lines.append(f"  a call does not build it: {self.not_built}")
            lines.append(f"  build it: {self.command}")
        return "\n".join(lines)

    @property
    def close_calls(self) -> tuple[Rejection, ...]:
        """The rejections that may surprise: bad manifests, and libraries of the same spec."""
        different = "implements "
        return tuple(item for item in self.rejections if not item.reason.startswith(different))


class _Resolved(dict[KernelKey, Kernel | None]):
    """The kernel for each key, or None if no kernel covers it; filled on first use.

    It is a dictionary so that every call but the first of its kind costs one look-up. Operations
    that read no bias come from a kernel with or without one. A look-up raises LibraryError if the
    chosen library is not the file that its manifest describes.
    """

    def __missing__(self, key: KernelKey) -> Kernel | None:
        try:
            spec = key.spec()
        except SpecError:
            self[key] = None
            return None
        with _lock:
            # Another thread may have filled it while this one waited for the lock.
            if key not in self:
                choice = _choose_or_build(spec, device_facts(key.device), key.operation)
                self[key] = load(choice) if choice else None
            return self[key]


resolved = _Resolved()

# Keys of warnings that have been issued; `clear` empties it.
warned: set[str] = set()


def explain(
    spec: KernelSpec, device: str | torch.device | Facts = "cpu", *, operation: str = "forward"
) -> Explanation:
    """Return which library is chosen for a spec on a device, and why; loads no library.

    device: a torch device or its name; or the facts of a device, which need no torch.
    """
    if isinstance(device, Facts):
        facts = device
    else:
        import torch

        facts = device_facts(torch.device(device))
    with _lock:
        searched = _search()
        choice, rejections = _choose(spec, facts, operation)
    command = None
    if facts.machine and compiles(spec.dtype, facts.machine.kind):
        command = build_command(spec, [facts.machine])
        # A package that carries natc has no cache, nor what finds the cache's directory.
        if workspace.only_directory() is None and noexec(workspace.library_dir()):
            # A library would not run where it is built without this.
            command = f"{env.NATC_CACHE_DIR.name}=DIRECTORY {command}"
    everything = (*searched.unreadable, *rejections)
    not_built = None
    if choice is None and facts.machine:
        not_built = jit.obstacle(spec, facts.machine, operation)
    return Explanation(
        spec, operation, facts, searched.directories, choice, everything, command, not_built
    )


def kernels() -> list[Library]:
    """Return the libraries of all directories, in search order; neither opened nor verified."""
    with _lock:
        return list(_search().libraries)


def problems() -> list[Rejection]:
    """Return the manifests and directories that cannot be read, and why."""
    with _lock:
        return list(_search().unreadable)


def clear() -> None:
    """Forget all libraries and kernels, so that the next call searches again.

    Call it after building a library for this process. Machine code that is open stays in memory
    until the process ends.
    """
    global _scan
    with _lock:
        _scan = None
        resolved.clear()
        warned.clear()


def _choose(
    spec: KernelSpec, facts: Facts, operation: str
) -> tuple[Choice | None, list[Rejection]]:
    """Return the choice of `select` among all libraries, and its rejections."""
    libraries = _search().libraries
    sibling = replace(spec, rpb=not spec.rpb)
    names = (spec.name, sibling.name)
    if not all(item.path.is_file() for item in libraries if item.manifest.spec in names):
        # Since the search, another process has replaced a library and removed the old one.
        libraries = _search_again().libraries
    choice, rejections = select(libraries, spec, facts, operation=operation)
    if choice is None and operation in _EITHER:
        choice, _ = select(libraries, sibling, facts, operation=operation)
    return choice, rejections


def _choose_or_build(spec: KernelSpec, facts: Facts, operation: str) -> Choice | None:
    """Return the choice for a spec, built first if no library fits and a call may build one."""

    def choose_again(name: str) -> Choice | None:
        _search_again()
        return _choose(spec, facts, name)[0]

    choice, _ = _choose(spec, facts, operation)
    if choice is not None or facts.machine is None:
        return choice
    if jit.obstacle(spec, facts.machine, operation):
        return None
    # The build does nothing if another process has built the library meanwhile.
    is_built = jit.build(
        spec, facts.machine, operation, lambda name: choose_again(name) is not None
    )
    return choose_again(operation) if is_built else None


def _search() -> Scan:
    """Return the scan of all library directories, done on first use."""
    return _search_again() if _scan is None else _scan


def _search_again() -> Scan:
    """Return a new scan of all library directories, and keep it."""
    global _scan
    _scan = scan(workspace.library_dirs())
    return _scan


def use(directory: str | Path) -> None:
    """Search a directory of libraries before all others, from the next call on.

    Kernels are forgotten, as by `clear`. Raises ArgumentError if there is no such directory. A bad
    library in it raises an error in the call that needs it, and is listed by `problems`.
    """
    is_directory = False
    # A user that does not exist, or a name that is too long.
    with contextlib.suppress(RuntimeError, OSError):
        is_directory = Path(directory).expanduser().is_dir()
    if not is_directory:
        raise ArgumentError(
            f"directory is {str(directory)!r}, and there is no such directory; it must hold "
            "libraries and their manifests."
        )
    workspace.use_library_dir(directory)
    clear()
