"""Training in two processes: DDP and FSDP give the gradients of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import natc

ROOT = Path(natc.__file__).parents[1]

# Every process prints a line for each check; a check that fails ends it.
PROGRAM = """
import datetime, sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from natc.models import NAT
from natc.models.nat import NATLevel

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=300),
)

def small(device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        return NAT(8, (1, 1), (1, 2), mlp_ratio=2, num_classes=3, kernel_size=3, layer_scale=0.5)

torch.manual_seed(1)
images = torch.randn(4, 3, 20, 16)
mine = images[2 * rank : 2 * rank + 2]
alone = small()
alone(images).square().mean().backward()
expected = {name: p.grad for name, p in alone.named_parameters()}

def check(what, gradients, **tolerance):
    assert list(gradients) == list(expected)
    for name, wanted in expected.items():
        torch.testing.assert_close(gradients[name], wanted, **tolerance)
    print(what, flush=True)

ddp = DistributedDataParallel(small())
for _ in range(2):
    ddp.zero_grad()
    ddp(mine).square().mean().backward()
check("DDP", {name: p.grad for name, p in ddp.module.named_parameters()})

static = DistributedDataParallel(small(), static_graph=True, gradient_as_bucket_view=True)
static(mine).square().mean().backward()
check("DDP, static graph", {name: p.grad for name, p in static.module.named_parameters()})

mesh = init_device_mesh("cpu", (2,))

def sharded(model, **options):
    for module in model.modules():
        if isinstance(module, NATLevel):
            fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)

def full_gradients(model):
    return {name: p.grad.full_tensor() for name, p in model.named_parameters()}

model = sharded(small())
assert all(p.to_local().numel() < p.numel() for p in model.parameters() if p.shape[0] > 1)
model(mine).square().mean().backward()
check("FSDP", full_gradients(model))
for parameter in model.parameters():
    assert parameter.grad.to_local().shape == parameter.to_local().shape

deferred = sharded(small("meta"))
deferred.to_empty(device="cpu")
torch.manual_seed(0)
deferred.init_weights()
with torch.no_grad():
    for parameter, other in zip(deferred.parameters(), alone.parameters()):
        parameter.copy_(distribute_tensor(other, mesh, parameter.placements))
deferred(mine).square().mean().backward()
check("FSDP, from device meta", full_gradients(deferred))

low = sharded(small(), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
logits = low(mine)
assert logits.dtype == torch.bfloat16
logits.float().square().mean().backward()
assert {p.grad.dtype for p in low.parameters()} == {torch.float32}
largest = max(g.abs().max() for g in expected.values())
check("FSDP, bfloat16", full_gradients(low), rtol=0.1, atol=0.05 * largest.item())

dist.destroy_process_group()
"""
CHECKS = ["DDP", "DDP, static graph", "FSDP", "FSDP, from device meta", "FSDP, bfloat16"]


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(path), str(rank), str(tmp_path / "rendezvous")],
            # The checkout, and no interface of a network but the machine's own.
            env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=500) for process in both]
    finally:
        for process in both:
            process.kill()
    for process, (output, errors) in zip(both, outputs, strict=True):
        assert process.returncode == 0, errors
        assert output.splitlines() == CHECKS
