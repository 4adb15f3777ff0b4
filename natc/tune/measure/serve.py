"""The inside of a process that runs jobs for a search: reads them, runs them, answers."""

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
    # What a job prints must not come among the answers.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, jobs), daemon=True).start()
    while True:
        pickle.dump(_answer(jobs.get()), answers)
        answers.flush()


def _answer(job: bytes) -> tuple[Any, str | None]:
    """Return the result of a job and None, or None and what it raised."""
    try:
        function, arguments = pickle.loads(job)
        return function(*arguments), None
    # Whatever a job raises is for its owner to judge.
    except Exception as error:
        text = str(error)
        return None, text if isinstance(error, NatcError) else f"{type(error).__name__}: {text}"


def _receive(requests: BinaryIO, jobs: queue.SimpleQueue[bytes]) -> None:
    """Queue jobs as they come; when their source is gone, be gone too, even in mid-job."""
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            jobs.put(pickle.load(requests))
    # A killed owner could not remove what it made.
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)
