"""Kernels in processes that were forked from one whose kernels had threads."""

from __future__ import annotations

from support.built_kernels import BuiltKernels
from support.fresh_process import run_fresh

from natc.spec import KernelSpec

# A child that waits for threads which are not there is ended by its alarm, with status 14.
PROGRAM = """
import os, signal, torch, natc

def attend():
    return natc.na1d(tensor, tensor, tensor, 3)

def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def calls():
    outputs = [attend() for _ in range(3)]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)  # for torch's comparison, which would wait for ever
    assert all(torch.equal(output, expected) for output in outputs)
    torch.set_num_threads(2)

def first_call():
    natc.runtime.clear()
    calls()

def grandchild():
    calls()
    assert child(calls) == 0

torch.set_num_threads(2)
tensor = torch.randn(4, 500, 4, 8)
expected = attend()
torch.randn(200_000).exp_()  # Threads of torch's own.
print([child(work) for work in (calls, first_call, grandchild)])
assert torch.equal(attend(), expected)
"""


def test_a_forked_process_does_not_wait_for_threads_it_lacks(built: BuiltKernels) -> None:
    built.need(KernelSpec(1, (3,), 8, "float32", rpb=False), "forward")
    assert run_fresh(PROGRAM, NATC_STRICT="1") == "[0, 0, 0]\n"
