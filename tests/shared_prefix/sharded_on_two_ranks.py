"""Run by torchrun: a model sharded by FSDP2 against the whole one, each rank with its own pairs; fails if unequal."""

import copy
import sys

import torch
import torch.distributed as dist
from families import MIXED, pair_batch, tiny_model
from test_forward import preference_loss, shared
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def main(family: str, checkpointing: bool) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    whole = tiny_model(family)
    sharded = copy.deepcopy(whole)
    if checkpointing:
        sharded.gradient_checkpointing_enable({"use_reentrant": False})
        sharded.train()
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in (*sharded.model.language_model.layers, *sharded.model.visual.blocks):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh, reshard_after_forward=True)

    losses = [preference_loss(shared(whole, pair_batch(whole, MIXED, seed=seed))) for seed in range(ranks)]
    (sum(losses) / ranks).backward()
    loss = preference_loss(shared(sharded, pair_batch(whole, MIXED, seed=rank)))
    loss.backward()

    torch.testing.assert_close(loss, losses[rank], rtol=1e-5, atol=0)
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], "checkpointing" in sys.argv)
