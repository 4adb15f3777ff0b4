"""Modules and calls in several processes and threads: pickles, data loaders, forks, threads."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fresh_process import run_fresh
from support.kernel_double import Doubles
from torch import nn

import natc
from natc.models import NAT
from natc.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

# Its children end by themselves or by their alarm, with status 14.
CHILDREN = """
import multiprocessing, os, signal, torch, natc
from torch.utils.data import DataLoader, Dataset

class Attended(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        x = torch.arange(48.0).reshape(1, 6, 2, 4).sin() * index
        return natc.na1d(x, x, x, 3)[0]

def begin(_):
    signal.alarm(120)

def load(method, number):
    dataset = Attended()
    expected = torch.stack([dataset[i] for i in range(4)])
    loader = DataLoader(
        dataset, batch_size=2, num_workers=number, multiprocessing_context=method,
        worker_init_fn=begin, persistent_workers=True,
    )
    for _ in range(2):
        assert torch.equal(torch.cat(list(loader)), expected)
    print(method, flush=True)

def train_in_a_fork():
    torch.set_num_threads(2)
    module = natc.nn.NeighborhoodAttention2D(32, 2, 3)
    x = torch.randn(8, 24, 24, 32)
    def step():
        module.zero_grad()
        module(x).square().sum().backward()
        return [p.grad.clone() for p in module.parameters()]
    # Kernels and torch have used their threads before the first child starts.
    step()
    torch.set_num_threads(1)
    expected = step()
    torch.set_num_threads(2)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        # As data loaders do in their workers; torch's operators would wait for threads.
        torch.set_num_threads(1)
        same = all(torch.equal(*pair) for pair in zip(step(), expected))
        os._exit(0 if same else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

if __name__ == "__main__":
    train_in_a_fork()
    load("fork", 2)
    load("spawn", 1)
"""


def test_forks_train_and_workers_of_data_loaders_call_natc() -> None:
    assert run_fresh(CHILDREN) == "0\nfork\nspawn\n"


def small() -> NAT:
    return NAT(8, (1, 1), (1, 2), mlp_ratio=2, num_classes=3, kernel_size=3, layer_scale=0.5)


MODULES: list[tuple[str, Any, tuple[int, ...]]] = [
    ("1D", lambda: NeighborhoodAttention1D(8, 2, 3, is_causal=True), (2, 6, 8)),
    ("2D", lambda: NeighborhoodAttention2D(8, 2, (3, 5), dilation=(1, 2)), (2, 6, 7, 8)),
    ("3D", lambda: NeighborhoodAttention3D(8, 2, 3, rel_pos_bias=False), (2, 4, 5, 3, 8)),
    ("NAT", small, (2, 3, 24, 20)),
]


@pytest.mark.parametrize(("name", "make", "shape"), MODULES, ids=[m[0] for m in MODULES])
def test_copies_compute_the_same(
    tmp_path: Path, doubles: Doubles, name: str, make: Any, shape: tuple[int, ...]
) -> None:
    module: nn.Module = make().eval()
    x = torch.randn(shape)
    expected = module(x)
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    loaded = make().eval()
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for copied in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(tmp_path / "module.pt", weights_only=False),
        loaded,
    ):
        assert torch.equal(copied(x), expected)
        assert repr(copied) == repr(module)
        assert not {p.data_ptr() for p in copied.parameters()} & {
            p.data_ptr() for p in module.parameters()
        }


def test_functions_are_pickled_by_name() -> None:
    for name in natc.functional.__all__:
        function = getattr(natc.functional, name)
        assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("train", [False, True])
def test_eight_threads_through_one_model(doubles: Doubles, train: bool) -> None:
    model = small().train(train)
    images = [torch.randn(2, 3, 16, 16) for _ in range(8)]

    def step(image: torch.Tensor) -> list[torch.Tensor]:
        if not train:
            with torch.inference_mode():
                return [model(image)]
        logits = model(image)
        return [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [step(image) for image in images]
    barrier = threading.Barrier(len(images))

    def work(image: torch.Tensor) -> list[list[torch.Tensor]]:
        barrier.wait()
        return [step(image) for _ in range(2)]

    with ThreadPoolExecutor(len(images)) as threads:
        results = list(threads.map(work, images))
    torch.set_num_threads(before)
    for runs, wanted in zip(results, expected, strict=True):
        for tensors in runs:
            assert all(torch.equal(*pair) for pair in zip(tensors, wanted, strict=True))
