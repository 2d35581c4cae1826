"""Run by torchrun: a model sharded by FSDP2 against the whole one, each rank with its own pairs; fails if unequal."""

import copy
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from families import MIXED, pair_batch, tiny_model
from test_forward import preference_loss, shared
from test_image_store import scored
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from uni_dpo import matmul
from uni_dpo.shared_prefix.image_store import ImageStore


def main(family: str, checkpointing: bool, kept: Path | None) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    whole = tiny_model(family)
    if kept:
        whole.model.visual.requires_grad_(False)
    sharded = copy.deepcopy(whole)
    if checkpointing:
        sharded.gradient_checkpointing_enable({"use_reentrant": False})
        sharded.train()
    torch.backends.cpu.get_cpu_capability = lambda: "AVX512"  # so every product goes through oneDNN
    matmul.SMALL = 1
    matmul.use_onednn(sharded.model)
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in (*sharded.model.language_model.layers, *sharded.model.visual.blocks):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh, reshard_after_forward=True)

    losses = [preference_loss(shared(whole, pair_batch(whole, MIXED, seed=seed))) for seed in range(ranks)]
    (sum(losses) / ranks).backward()
    mine = pair_batch(whole, MIXED, seed=rank)
    if kept:
        store = ImageStore(kept, {"rank": rank})
        if rank == 0:  # the other must look, and needs this one's part of the tower for it
            scored(whole, mine, store)
        logps = [scored(sharded, mine, store) for _ in range(2)][-1]
    else:
        logps = shared(sharded, mine)
    loss = preference_loss(logps)
    loss.backward()

    torch.testing.assert_close(loss, losses[rank], rtol=1e-5, atol=0)
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in sharded.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None
            continue
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], rtol=1e-4, atol=1e-6)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], "checkpointing" in sys.argv, Path(sys.argv[3]) if "kept" in sys.argv else None)
