"""Models made deep from one layer of each kind, held against those made layer by layer."""

from typing import Any

import pytest

from seeklet.finetune.demo.nano import student_config, teacher_config
from seeklet.finetune.plan.check import ALL_TARGETS, Case, make_recipe
from seeklet.finetune.plan.cluster import make_cluster
from seeklet.finetune.plan.deepening import one_of_each
from seeklet.finetune.plan.request import make_request


def outline(model: Any) -> list[Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in tensors]


@pytest.mark.parametrize("targets", [(), ALL_TARGETS], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("ours", [True, False], ids=["mixture", "Llama"])
def test_a_deep_model_is_the_one_made_layer_by_layer(targets, ours, tmp_path):
    config: Any = teacher_config() if ours else student_config()
    config.num_hidden_layers = 5
    if ours:
        config.first_k_dense_replace, config.num_nextn_predict_layers = 2, 1
    targets = targets if ours else targets[:2]
    request = make_request(make_recipe(Case("", 1, 64, targets), config, tmp_path), make_cluster("h200", 1))
    deep, whole = request.build(), request.build(num_hidden_layers=5)
    assert outline(deep) == outline(whole) and len(outline(deep)) > 40
    assert deep.config.num_hidden_layers == 5
    bare = request.build_bare()
    assert sum(p.numel() for p in bare.parameters()) == sum(
        p.numel() for name, p in whole.named_parameters() if "lora_" not in name
    )


def test_layers_that_may_differ_are_made_one_by_one(tmp_path):
    case = Case("", 1, 64, ("layers.1.self_attn.q_proj",))
    recipe = make_recipe(case, student_config(), tmp_path)
    assert one_of_each(student_config(), recipe.adapter) is None
    other: Any = student_config()
    other.model_type = "gemma3n_text"
    assert one_of_each(other) is None
