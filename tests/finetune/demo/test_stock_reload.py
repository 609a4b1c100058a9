"""The reload check tells the same model from another one, and says so when there is none to load."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from seeklet.finetune.demo.nano import teacher_config
from seeklet.finetune.demo.stock_reload import ReloadError, reload_in_stock
from seeklet.finetune.demo.task import ChainSums
from seeklet.finetune.demo.tokenizer import build_tokenizer
from seeklet.modeling import SeekletForCausalLM

CONVERSATIONS = [
    [
        {"role": "user", "content": problem.prompt},
        {"role": "assistant", "content": problem.answer, "reasoning_content": problem.reasoning},
    ]
    for problem in ChainSums(seed=0, num_test=4).test
]


@pytest.mark.slow
def test_a_checkpoint_with_one_wrong_tensor_is_found_out(tmp_path: Path) -> None:
    model = SeekletForCausalLM(teacher_config())
    model.save_pretrained(tmp_path)
    assert reload_in_stock(model, build_tokenizer(), tmp_path, CONVERSATIONS).passed
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.experts.5.down_proj.weight"] *= -1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reload = reload_in_stock(model, build_tokenizer(), tmp_path, CONVERSATIONS)
    assert reload.max_logit_difference > 1e-3
    assert not reload.passed


@pytest.mark.slow
def test_nothing_to_load_is_one_clear_error(tmp_path: Path) -> None:
    model = SeekletForCausalLM(teacher_config())
    with pytest.raises(ReloadError, match="stock transformers could not load") as raised:
        reload_in_stock(model, build_tokenizer(), tmp_path, CONVERSATIONS)
    assert "\n" not in str(raised.value)
