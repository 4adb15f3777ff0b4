"""Ctrl-C while compiled code works: held back, then raised, and never lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.tune.search.interrupts import deferred
from natc.tune.search.proposer import Proposer


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_block_ends_before_the_interruption() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interruption_nothing_happens() -> None:
    with deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), deferred():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_may_search_too() -> None:
    def block() -> int:
        with deferred():
            return 1

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(block).result() == 1


def test_proposing_survives_an_interruption() -> None:
    spec = KernelSpec.parse("na2d_k3_d8_float32")
    proposer = Proposer(spec, detect_host_cpu(), (1, 8, 8, 1), batch=6, seed=0)
    proposed = []
    # In the midst of MetaSchedule's work, where its calls into Python would be interrupted.
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), deferred():
        timer.start()
        proposed = proposer.propose()
        timer.join()
    assert len(proposed) == 6
    assert all(proposed)
