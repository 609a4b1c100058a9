"""Adapters on a kernelized model: every target's forward and gradients are those without kernels."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.finetune.lora.layers import ExpertsLora
from seeklet.modeling.kernels import layers
from tests.finetune.lora.adapters import ALL, attached, build
from tests.modeling.kernelized import assert_close, kernelized
from tests.modeling.nano import draw_tokens


@pytest.mark.parametrize("targets", [("routed_experts",), ALL], ids=["experts", "all"])
def test_a_training_step_through_the_kernels(targets: tuple[str, ...]) -> None:
    model = attached(build(num_hidden_layers=2), *targets)
    tokens = draw_tokens(2, 8)

    def run() -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        found = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        return {"loss": loss.detach(), **found}

    expected = run()
    actual, launched = kernelized(model, run)
    experts: list[Any] = [module.get_base_layer() for module in model.modules() if isinstance(module, ExpertsLora)]
    assert experts and all(each.forward.__func__ is layers.SeekletExperts.forward for each in experts)
    # Forward, and the gradients of the adapter's factors.
    assert launched["grouped_experts.gate_up_kernel"] and launched["grouped_experts.over_rows_kernel"]
    assert_close(actual, expected)
