"""The classifiers equal transformers' own on the same weights, and know nothing of MTP."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DeepseekV3ForSequenceClassification,
    DeepseekV3ForTokenClassification,
    DeepseekV3Model,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from seeklet.modeling import (
    SeekletForCausalLM,
    SeekletForSequenceClassification,
    SeekletForTokenClassification,
    SeekletModel,
)
from tests.modeling.nano import (
    PAD,
    assert_same_gradients,
    build_ours,
    build_pair,
    draw_tokens,
    padding_mask,
    relative_error,
)

TOLERANCE = 1e-5
LENGTHS = (9, 4, 6)


def make_batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens of three rows with PAD in their padding, and the mask."""
    mask = padding_mask(LENGTHS, max(LENGTHS), side)
    return draw_tokens(len(LENGTHS), max(LENGTHS)).masked_fill(mask == 0, PAD), mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", torch.tensor([2, 0, 1])),
        ("regression", torch.tensor([[0.3, 1.0, -2.0], [0.0, 1.0, 2.0], [1.5, -1.0, 0.2]])),
        ("multi_label_classification", torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])),
    ],
)
def test_sequence_classification_equals_stock(problem: str, labels: torch.Tensor, side: str) -> None:
    stock, ours = build_pair(DeepseekV3ForSequenceClassification, SeekletForSequenceClassification, num_labels=3)
    tokens, mask = make_batch(side)
    outputs = []
    for model in (stock, ours):
        model.config.problem_type = problem
        outputs.append(model(tokens, attention_mask=mask, labels=labels))
        outputs[-1].loss.backward()
    assert outputs[0].logits.shape == (3, 3)
    assert relative_error(outputs[1].logits, outputs[0].logits) <= TOLERANCE
    assert relative_error(outputs[1].loss, outputs[0].loss) <= TOLERANCE
    assert_same_gradients(ours, stock, TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_classification_equals_stock(side: str) -> None:
    stock, ours = build_pair(DeepseekV3ForTokenClassification, SeekletForTokenClassification, num_labels=4)
    for model in (stock, ours):
        # Its head drops out in training.
        model.dropout.p = 0.0
    tokens, mask = make_batch(side)
    labels = (tokens % 4).masked_fill(mask == 0, -100)
    outputs = [model(tokens, attention_mask=mask, labels=labels) for model in (stock, ours)]
    real = mask.bool()
    assert relative_error(outputs[1].logits[real], outputs[0].logits[real]) <= TOLERANCE
    assert relative_error(outputs[1].loss, outputs[0].loss) <= TOLERANCE
    for output in outputs:
        output.loss.backward()
    assert_same_gradients(ours, stock, TOLERANCE)


def test_a_sequence_is_classified_by_its_last_real_token() -> None:
    model = build_ours(SeekletForSequenceClassification, num_labels=3).double().eval()
    (left, left_mask), (right, right_mask) = make_batch("left"), make_batch("right")
    with torch.no_grad():
        for row, length in enumerate(LENGTHS):
            alone = model(left[row : row + 1, -length:]).logits[0]
            positions = (left_mask.cumsum(1) - 1).clamp(min=0)
            padded = model(left, attention_mask=left_mask, position_ids=positions).logits[row]
            assert relative_error(padded, alone) <= 1e-12
            alone = model(right[row : row + 1, :length]).logits[0]
            assert relative_error(model(right, attention_mask=right_mask).logits[row], alone) <= 1e-12


@pytest.mark.parametrize("model_class", [SeekletForSequenceClassification, SeekletForTokenClassification])
def test_classifiers_have_no_mtp_modules_and_leave_the_callers_config_alone(model_class: Any) -> None:
    config = build_ours(num_nextn_predict_layers=1).config
    model = model_class(config)
    assert len(model.model.layers) == config.num_hidden_layers
    assert model.config.num_nextn_predict_layers == 0
    assert config.num_nextn_predict_layers == 1


def test_bare_model_equals_stock() -> None:
    stock, ours = build_pair(DeepseekV3Model, SeekletModel)
    tokens, mask = make_batch("left")
    expected, actual = (model(tokens, attention_mask=mask).last_hidden_state for model in (stock, ours))
    real = mask.bool()
    assert relative_error(actual[real], expected[real]) <= TOLERANCE
    weights = torch.randn_like(expected) * mask[..., None]
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    assert_same_gradients(ours, stock, TOLERANCE)


@pytest.mark.parametrize("both", [True, False])
def test_tokens_and_embeddings_are_one_or_the_other(both: bool) -> None:
    model = build_ours()
    tokens = draw_tokens(1, 3)
    given = {"input_ids": tokens, "inputs_embeds": model.get_input_embeddings()(tokens)} if both else {}
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**given)


def test_logits_are_made_where_wanted() -> None:
    """By default not in training with labels, where the loss does without them."""
    model, tokens = build_ours(), draw_tokens(2, 5)
    assert model(tokens, labels=tokens).logits is None
    asked = model(tokens, labels=tokens, return_logits=True).logits
    assert relative_error(asked, model(tokens).logits) <= TOLERANCE
    model.eval()
    assert model(tokens, labels=tokens).logits is not None
    assert model(tokens, labels=tokens, return_logits=False).logits is None


def test_tuple_output_holds_the_fields_in_order() -> None:
    model, tokens = build_ours().eval(), draw_tokens(2, 5)
    output = model(tokens, labels=tokens)
    loss, logits = model(tokens, labels=tokens, return_dict=False)[:2]
    assert torch.equal(loss, output["loss"]) and torch.equal(logits, output["logits"])


def test_trainer_finds_the_loss_and_nothing_but_logits_to_evaluate(tmp_path: Path) -> None:
    model, tokens = build_ours(num_nextn_predict_layers=1), draw_tokens(4, 6)
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    seen = []

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {}

    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, eval_strategy="steps")
    given: Any = rows
    trainer = Trainer(model, arguments, train_dataset=given, eval_dataset=given, compute_metrics=compute_metrics)
    trainer.train()
    assert isinstance(seen[0], numpy.ndarray) and seen[0].shape == (4, 6, model.config.vocab_size)
    output = model.train()(tokens, labels=tokens)
    assert next(iter(output)) == "loss" and torch.equal(output[0], output.loss)


def test_tied_embeddings_are_one_parameter_after_loading_and_resizing() -> None:
    model = build_ours(SeekletForCausalLM, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.resize_token_embeddings(120)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape[0] == model.config.vocab_size == 120
    assert model.eval()(torch.tensor([[119, 3]])).logits.shape == (1, 2, 120)


def test_adapter_on_the_head_counts_in_the_loss() -> None:
    """The chunked loss reads the head's weight itself, which an adapter does not change."""
    adapted = get_peft_model(build_ours(balance_loss_weight=0.0), LoraConfig(r=2, target_modules=["lm_head"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tokens = draw_tokens(2, 6)
    logits = adapted(tokens).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert relative_error(adapted(tokens, labels=tokens).loss, expected) <= TOLERANCE


def test_log_probabilities_in_place_of_the_next_token_loss() -> None:
    model = build_ours(num_nextn_predict_layers=1, mtp_loss_weight=0.5, balance_loss_weight=0.25)
    tokens = torch.randint(1, 97, (2, 9))
    labels = tokens.clone()
    labels[:, :4] = -100
    outputs = model(tokens, labels=labels, temperature=0.7)
    log_p = (model(tokens).logits.float() / 0.7).log_softmax(-1)[:, :-1]
    expected = log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(outputs.log_probs[:, 3:-1], expected[:, 3:])
    torch.testing.assert_close(outputs.entropy[:, 3:-1], -(log_p.exp() * log_p).sum(-1)[:, 3:])
    assert (outputs.log_probs[:, :3] == 0).all() and (outputs.log_probs[:, -1] == 0).all()
    assert outputs.lm_loss is None and outputs.logits is None
    with_loss = model(tokens, labels=labels)
    torch.testing.assert_close(outputs.mtp_loss, with_loss.mtp_loss)
    torch.testing.assert_close(outputs.loss, 0.5 * with_loss.mtp_loss + 0.25 * with_loss.balance_loss)
