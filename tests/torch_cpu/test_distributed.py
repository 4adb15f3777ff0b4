"""Training in two processes: DDP and FSDP give the gradients of one process."""

from __future__ import annotations

from pathlib import Path

from support.fresh_process import run_fresh

# Both processes are forks of a process that has imported torch. Each prints a line for each check.
# A check that fails ends its process, and with it the other process.
PROGRAM = """
import datetime, os, signal, sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from natc.models import NAT
from natc.models.nat import NATLevel

processes = []
for rank in range(2):
    processes.append(os.fork())
    if processes[-1] == 0:
        break
else:
    while processes:
        process, status = os.wait()
        processes.remove(process)
        if status:
            for process in processes:
                os.kill(process, signal.SIGKILL)
            sys.exit(1)
    sys.exit()

rendezvous = sys.argv[1]
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
    print(f"{what}\\n", end="", flush=True)  # in one piece: the other process prints too

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
    # No interface of a network but the machine's own.
    output = run_fresh(PROGRAM, str(tmp_path / "rendezvous"), GLOO_SOCKET_IFNAME="lo")
    assert sorted(output.splitlines()) == sorted(2 * CHECKS)
