"""Building many kernels for a package in several processes, each kernel once."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from natc import env
from natc.errors import BuildError, CompilerNotFound
from natc.host import environment
from natc.host.toolchain import find_nvcc
from natc.operations import operations_of, tuned_as
from natc.package.portable import CEILING
from natc.package.sources import PACKAGE, modules_of
from natc.runtime.scan import Library, scan
from natc.spec import KernelSpec
from natc.store import files, workspace
from natc.store.files import Locked, locked
from natc.store.manifest import LibraryTarget
from natc.store.schedules import near
from natc.targets import Target
from natc.version import __version__

_log = logging.getLogger("natc")

_TOOLS = ("apache-tvm", "apache-tvm-ffi", "ziglang")
_SOURCES = (".c", ".h", ".cu", ".cuh")


@dataclass(frozen=True, slots=True)
class Job:
    """A library to build: a spec, a CPU or some CUDA architectures, families of operations."""

    spec: KernelSpec
    targets: tuple[Target, ...]
    families: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file name of the library's manifest, without its ending."""
        archs = tuple(target.arch for target in self.targets)
        return f"{self.spec.name}.{LibraryTarget(self.targets[0].kind, archs).name}"


def jobs(
    specs: Sequence[KernelSpec], kind: str, archs: Sequence[str], families: Sequence[str]
) -> list[Job]:
    """Return the libraries to build for specs and architectures; CUDA's share one library.

    families: of operations; a spec without any of them is left out.
    """
    targets = [Target(kind, arch) for arch in archs]
    groups = [tuple(targets)] if kind == "cuda" else [(target,) for target in targets]
    return [
        Job(spec, group, tuple(families))
        for spec in specs
        if operations_of(spec, tuple(families))
        for group in groups
    ]


def directory_of(job: Job, tools: str) -> Path:
    """Return the directory to build a library in; its name changes if any input changes.

    tools: the result of `tool_versions`.
    """
    inputs = {
        "natc": __version__,
        "code": _code_digest(),
        "tools": tools,
        "linker": env.NATC_CC.get(),
        "library": job.name,
        "archs": [target.arch for target in job.targets],
        "operations": operations_of(job.spec, job.families, job.targets[0].kind),
        "schedules": {target.name: _schedules_digest(job.spec, target) for target in job.targets},
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return workspace.cache_dir() / "package" / f"{job.name}.{digest[:16]}"


def tool_versions(kind: str) -> str:
    """Return the versions of the tools that build libraries for a kind of target."""
    versions = [f"{name} {environment.version_of(name)}" for name in _TOOLS]
    versions.append(f"host {platform.machine()}")
    if kind == "cuda":
        try:
            command = [find_nvcc(), "--version"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            versions.append(done.stdout)
        except (OSError, CompilerNotFound):
            versions.append("no nvcc")
    return "\n".join(versions)


def built(job: Job, tools: str) -> Library | None:
    """Return the library of a job if it was built from the same inputs, else None."""
    return _built(directory_of(job, tools))


def _built(directory: Path) -> Library | None:
    libraries = scan([directory]).libraries
    return next((library for library in libraries if library.path.is_file()), None)


def build_all(todo: Sequence[Job], tools: str, workers: int) -> Iterator[tuple[Job, list[str]]]:
    """Build libraries in other processes; yield each job when it is done, with its notes.

    Finished libraries stay when this is interrupted. Raises BuildError naming the library that
    cannot be built, and CompilerNotFound.
    """
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(todo)), context, _begin)
    try:
        running = {pool.submit(_build, job, directory_of(job, tools)): job for job in todo}
        waiting: dict[Job, float] = {}
        while running:
            done = next(as_completed(running))
            job = running.pop(done)
            try:
                notes = done.result()
            except Locked as error:
                # Another process builds it; this one builds others meanwhile.
                if job not in waiting:
                    waiting[job] = time.monotonic()
                    _log.warning("natc waits for %s: %s", job.name, error)
                if time.monotonic() - waiting[job] >= files.longest_wait:
                    raise
                running[pool.submit(_build, job, directory_of(job, tools))] = job
            except BuildError as error:
                message = f"library {job.name} cannot be built: {error}"
                raise type(error)(message) from error
            else:
                yield job, notes
    except BrokenProcessPool as error:
        raise BuildError(
            "a process that built libraries was ended from outside, perhaps for want of "
            "memory, or of space for temporary files (TMPDIR). Finished libraries are kept: run "
            "the command again, with fewer --jobs."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # Nobody would use the results of processes that still build.
        for process in multiprocessing.active_children():
            process.terminate()


def linker_note() -> str | None:
    """Return a sentence if libraries will need a system as new as this one, else None."""
    if env.NATC_CC.get() or find_spec("ziglang") is None:
        return (
            "libraries are linked by this system's C compiler and run on systems as new as this "
            "one; with ziglang installed and NATC_CC unset, they run on "
            f"glibc {'.'.join(map(str, CEILING))} and newer."
        )
    return None


def _begin() -> None:
    # Ctrl-C goes to the process that the user started, which ends these processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # If that process is killed, a worker would wait for its next job for ever.
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build(job: Job, directory: Path) -> list[str]:
    notes: list[str] = []
    # Two packages that are built at once share their libraries and build each once.
    with locked(directory, ".lock", wait=False):
        if _built(directory) is None:
            from natc.compiler.import_tvm import import_tvm_alone

            import_tvm_alone(job.targets[0].kind)
            from natc.compiler.build import build_library

            targets = job.targets if job.targets[0].kind == "cuda" else job.targets[0]
            build_library(
                job.spec, targets, directory, families=job.families, on_note=notes.append
            )
    return notes


@functools.cache
def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def code_files() -> list[Path]:
    """Return the files of natc that decide what code a library holds.

    These are the modules that run when `build_library` does, and the C and CUDA sources beside
    them.
    """
    modules = modules_of("natc.compiler.build")
    sources = (path for path in (PACKAGE / "compiler").rglob("*") if path.suffix in _SOURCES)
    return [*modules.values(), *sorted(sources)]


def _schedules_digest(spec: KernelSpec, target: Target) -> list[list[str]]:
    # A kernel may use the schedules of near kernels. There are hundreds, and few files.
    files = {path.stem: path for path in workspace.schedule_files(target)}
    operations = dict.fromkeys(map(tuned_as, operations_of(spec, kind=target.kind)))
    names = dict.fromkeys(
        workspace.tuned_name(candidate, operation)
        for candidate in near(spec)
        for operation in operations
    )
    return [
        [name, hashlib.sha256(files[name].read_bytes()).hexdigest()]
        for name in names
        if name in files
    ]
