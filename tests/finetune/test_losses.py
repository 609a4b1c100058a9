"""The loss of models that are not seeklet's, from their head in chunks, against their own from all logits."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.losses import next_token_loss, use_head_loss
from seeklet.modeling.kernels.linear_cross_entropy import reference
from tests.kernels.memory import largest_tensor_made
from tests.modeling.nano import assert_same_gradients, build_ours, draw_tokens, padding_mask, relative_error

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "llama, tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2, tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "phi, head with bias": (PhiForCausalLM, PhiConfig, {}),
}


def build(name: str, **changes: Any) -> Any:
    """Return a nano model in float64, in training mode."""
    model_class, config_class, settings = MODELS[name]
    torch.manual_seed(0)
    return model_class(config_class(**SIZES | settings | changes)).double().train()


def make_batch() -> dict[str, torch.Tensor]:
    """Return three rows padded on the right, of which only some positions are labelled."""
    tokens, mask = draw_tokens(3, 11), padding_mask((11, 5, 8), 11, "right")
    labelled = (torch.arange(11) >= 4) & mask.bool()
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(~labelled, -100)}


@pytest.mark.parametrize("num_items", [None, 50])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_gradient_are_those_of_all_logits(name: str, num_items: int | None) -> None:
    batch = make_batch()
    expected, actual = build(name), use_head_loss(build(name))
    kwargs = {} if num_items is None else {"num_items_in_batch": num_items}
    losses = [model(**batch, **kwargs).loss for model in (actual, expected)]
    assert relative_error(*losses) <= 1e-7
    for loss in losses:
        loss.backward()
    # transformers computes the loss in fp32 even of a float64 model.
    assert_same_gradients(actual, expected, 1e-6)


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_against_a_formula_written_out_in_float64(name: str) -> None:
    batch = make_batch()
    model, expected = use_head_loss(build(name)), build(name)
    model(**batch).loss.backward()
    logits = expected(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.dtype == torch.float64
    F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    assert_same_gradients(model, expected, 1e-12)


def test_labels_of_the_docstring() -> None:
    model, hidden = build("llama"), torch.randn(1, 4, 24, dtype=torch.float64)
    log_p = model.lm_head(hidden)[0].log_softmax(-1)
    loss = next_token_loss(model, hidden, torch.tensor([[5, 7, -100, 9]]), None)
    torch.testing.assert_close(loss, -(log_p[0, 7] + log_p[2, 9]) / 2)


def test_never_makes_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr(reference, "MIN_CHUNK_ROWS", 1)
    tokens = draw_tokens(4, 30)
    model = use_head_loss(build("llama", vocab_size=1000))
    made = largest_tensor_made(lambda: model(tokens, labels=tokens).loss.backward())
    # The head's own gradient.
    assert made == 1000 * 24 < tokens.numel() * 1000


def test_without_labels_it_is_the_model_it_was() -> None:
    tokens = draw_tokens(2, 6)
    model: Any = use_head_loss(build("llama")).eval()
    before: Any = build("llama").eval()
    assert torch.equal(model(tokens).logits, before(tokens).logits)
    limits: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(tokens, **limits), before.generate(tokens, **limits))


def test_what_it_saves_names_the_class_itself(tmp_path: Any) -> None:
    model = use_head_loss(build("llama"))
    assert isinstance(model, LlamaForCausalLM) and type(model) is not LlamaForCausalLM
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM and loaded.config.architectures == ["LlamaForCausalLM"]
    # Of its own instance only: other models of the class are as before.
    assert type(build("llama")) is LlamaForCausalLM


def test_with_an_adapter_around_it_the_adapter_gets_the_same_gradient() -> None:
    batch = make_batch()
    adapted: list[Any] = []
    for model in (use_head_loss(build("llama")), build("llama")):
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)  # pyright: ignore
        adapted.append(get_peft_model(model, config))
        adapted[-1].forward(**batch).loss.backward()
    assert_same_gradients(*adapted, tolerance=1e-6)


def test_a_seeklet_model_is_left_alone() -> None:
    model = build_ours()
    before = type(model)
    assert type(use_head_loss(model)) is before


@pytest.mark.parametrize(
    ("model_class", "config_class", "settings", "named"),
    [
        (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}, "logits_scaling 8.0"),
    ],
)
def test_logits_changed_behind_the_head_are_refused(
    model_class: Any, config_class: Any, settings: dict[str, Any], named: str
) -> None:
    model = model_class(config_class(**SIZES | settings))
    with pytest.raises(RecipeError, match=f"has {named} in its config"):
        use_head_loss(model)
    assert type(model) is model_class


class Louder(LlamaForCausalLM):
    """Does more than its head, and says so nowhere."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.1
        return output


def test_logits_that_are_not_the_heads_are_found_out_by_their_values() -> None:
    with pytest.raises(RecipeError, match=r"not its output head applied .*off by 9\.1%"):
        use_head_loss(Louder(LlamaConfig(**SIZES)))
