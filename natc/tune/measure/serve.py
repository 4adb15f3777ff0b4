"""The main loop of a process that runs jobs for a search."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import shutil
import signal
import sys
import threading
from typing import Any, BinaryIO

from natc.errors import NatcError


def serve() -> None:
    """Run jobs from standard input until it ends; answers go to standard output."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # A job's own output must not mix with the answers.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, jobs), daemon=True).start()
    while True:
        pickle.dump(_answer(jobs.get()), answers)
        answers.flush()


def _answer(job: bytes) -> tuple[Any, str | None]:
    """Return (the result of a job, None), or (None, the text of its exception)."""
    try:
        function, arguments = pickle.loads(job)
        return function(*arguments), None
    # The owner judges the exception.
    except Exception as error:
        text = str(error)
        return None, text if isinstance(error, NatcError) else f"{type(error).__name__}: {text}"


def _receive(requests: BinaryIO, jobs: queue.SimpleQueue[bytes]) -> None:
    """Queue jobs as they arrive; end this process when its owner has ended, even during a job."""
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            jobs.put(pickle.load(requests))
    # A killed owner could not remove its temporary files.
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)
