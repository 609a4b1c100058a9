"""Adapters under DistributedDataParallel, where every process reaches other experts."""

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from tests.finetune.lora import ranks
from tests.finetune.lora.adapters import ALL, attached, build, loss_and_gradients
from tests.modeling.nano import relative_error


@pytest.mark.slow
def test_gradients_are_the_mean_of_those_of_the_processes(tmp_path: Path) -> None:
    """Also of experts that one process, or none, has tokens for; no parameter is waited for in vain."""
    context = multiprocessing.start_processes(ranks.run, (2, str(tmp_path)), nprocs=2, join=False, start_method="spawn")
    assert context is not None
    model = attached(build(torch.float64, **ranks.SIZES), *ALL)
    alone = [loss_and_gradients(model, ranks.batch_of(rank))[1] for rank in range(2)]
    while not context.join():
        pass
    factor = next(name for name in alone[0] if "layers.1.mlp.experts.base_layer.lora_A" in name)
    hit = [one[factor].unflatten(0, (32, -1)).abs().amax((1, 2)) > 0 for one in alone]
    assert (hit[0] != hit[1]).any() and not (hit[0] | hit[1]).all()
    for rank in range(2):
        for gradients in torch.load(tmp_path / f"rank{rank}.pt"):
            assert {name.removeprefix("module.") for name in gradients} == alone[0].keys()
            for name in alone[0]:
                mean = (alone[0][name] + alone[1][name]) / 2
                assert relative_error(gradients[f"module.{name}"], mean) < 1e-12, name
