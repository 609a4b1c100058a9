"""On-policy distillation across tokenizers: the loss by hand, real tokenizers, and that the student comes closer."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from seeklet.finetune.distill.divergence import log_softmax
from seeklet.finetune.distill.text_alignment import align, decode_ends, encode_ends
from seeklet.finetune.distill.text_trainer import SeekletTextDistillationTrainer
from seeklet.finetune.errors import RecipeError, TrainingError
from tests.finetune.characters import build_tokenizer
from tests.finetune.distill.on_policy import PROMPTS, SIZES, build_dense, build_teacher, make_config
from tests.finetune.distill.tokenizers_of_kinds import KINDS
from tests.modeling.nano import build_ours, relative_error
from tests.modeling.tensors import assert_same

# Written by students in what follows; of the demo's teacher all characters are known.
TEXTS = ["<think>1+2=3</think>3", "12=12", "7;7", ""]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def student_tokenizer(kind: str = "bytes") -> PreTrainedTokenizerBase:
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


def build_student(tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> Any:
    """Return a nano Llama over a tokenizer's own vocabulary."""
    numbers = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return build_dense(vocab_size=len(tokenizer), **numbers | sizes)


def make_trainer(
    student: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, config: dict[str, Any] | None = None, **options: Any
) -> Any:
    teacher, theirs = options.pop("teacher", None) or build_teacher(), options.pop("theirs", None) or build_tokenizer()
    data = Dataset.from_dict({"prompt": options.pop("prompts", PROMPTS)})
    return SeekletTextDistillationTrainer(
        student, teacher, make_config(folder, **config or {}), tokenizer, theirs, data, **options
    )


def say(trainer: Any, texts: list[str], ended: list[bool]) -> dict[str, Any]:
    """Return the batch of a student that has sampled these texts."""
    tokenizer = trainer.processing_class
    completions = [
        tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * end
        for text, end in zip(texts, ended, strict=True)
    ]
    trainer._generate_single_turn = lambda *args, **kwargs: completions
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS])


def log_probs_of(model: Any, prompt: list[int], tokens: list[int]) -> list[torch.Tensor]:
    """Return the log-probability of each token behind the prompt."""
    log_p = log_softmax(model(torch.tensor([prompt + tokens])).logits[0])
    return [log_p[len(prompt) + i - 1, token] for i, token in enumerate(tokens)]


@pytest.mark.parametrize("kind", ["bytes", "byte fallback", "deepseek"])
@pytest.mark.parametrize("ended", [[True] * 4, [True, False, False, True]])
def test_the_loss_is_that_of_each_row_alone(tmp_path: Path, kind: str, ended: list[bool]) -> None:
    tokenizer, theirs = student_tokenizer(kind), build_tokenizer()
    student = build_student(tokenizer)
    trainer = make_trainer(student, tokenizer, tmp_path)
    batch = say(trainer, TEXTS, ended)
    loss = trainer.compute_loss(student, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    total, number, gap = torch.zeros(()), 0, 0.0
    for prompt, text, end in zip(PROMPTS, TEXTS, ended, strict=True):
        read = decode_ends(tokenizer, tokenizer.encode(text, add_special_tokens=False))
        scored = encode_ends(theirs, text)
        *spans, aligned = align(read.ends, scored.ends)
        both: list[Any] = [tokenizer, theirs]
        prompts = [each.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for each in both]
        tokens = [found.tokens + [each.eos_token_id] * end for found, each in zip((read, scored), both, strict=True)]
        # The last span of what was cut off is left out.
        number_of_spans = aligned + (1 if end else -1)
        places: list[Any] = [[*side, *[aligned] * end] for side in spans]
        values = [log_probs_of(student, prompts[0], tokens[0])]
        with torch.no_grad():
            values.append(log_probs_of(trainer.teacher_model, prompts[1], tokens[1]))
        for k in range(number_of_spans):
            sums = [sum(v for v, s in zip(x, y, strict=True) if s == k) for x, y in zip(values, places, strict=True)]
            difference = torch.as_tensor(sums[0] - sums[1])
            gap += difference.item()
            # (s - t)^2 / 2 has the gradient of the sampled reverse KL.
            total = total + difference**2 / 2
        number += sum(0 <= span < number_of_spans for span in places[0])
    assert batch["num_items_in_batch"] == number
    assert loss.item() == pytest.approx(gap / number, rel=1e-4)
    (total / number).backward()
    for name, parameter in student.named_parameters():
        assert relative_error(gradients[name], parameter.grad) < 1e-4, name


def test_the_share_that_is_compared_is_logged(tmp_path: Path) -> None:
    tokenizer = student_tokenizer("byte fallback")
    trainer = make_trainer(build_student(tokenizer), tokenizer, tmp_path)
    # Eight characters in eight tokens, of which the last is left out; and a text of nothing but its end.
    say(trainer, ["1+2=3;34", "", "", ""], [False, True, True, True])
    [share] = trainer._metrics["train"]["aligned_share"]
    # The tokenizer writes a space in front, which the teacher does not read.
    assert share == pytest.approx((7 + 3) / (8 + 3), abs=0.1)


# Sorted probabilities say how sure a teacher is, and not of what.
@pytest.mark.parametrize(("text_loss", "share"), [("sampled", 0.5), ("sorted", 0.9)])
def test_the_student_comes_closer(tmp_path: Path, text_loss: Any, share: float) -> None:
    """The student has other tokens for the same characters: numbers of two digits."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"{a}{b}" for a in range(10) for b in range(10)])
    student = build_student(tokenizer, bos_token_id=1)
    config = {
        "max_steps": 60,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 16,
    }
    prompts = PROMPTS * 4
    trainer = make_trainer(student, tokenizer, tmp_path, config, text_loss=text_loss, prompts=prompts)
    trainer.train()
    values = [entry["divergence"] for entry in trainer.state.log_history if "divergence" in entry]
    assert len(values) == 60 and sum(values[-10:]) < share * sum(values[:10])


def test_a_seeklet_student_keeps_its_own_losses(tmp_path: Path) -> None:
    tokenizer = student_tokenizer()
    sizes = {**SIZES, "vocab_size": len(tokenizer), "num_nextn_predict_layers": 1, "mtp_loss_weight": 0.3}
    student = build_ours(**sizes, balance_loss_weight=0.05)
    trainer = make_trainer(student, tokenizer, tmp_path)
    loss = trainer.compute_loss(student, say(trainer, TEXTS, [True] * 4))
    metrics = {name: sum(values) for name, values in trainer._metrics["train"].items()}
    metrics["divergence"] = (trainer._divergences["train"][0] / trainer._divergences["train"][1]).item()
    expected = metrics["divergence"] + 0.3 * metrics["mtp_loss"] + 0.05 * metrics["balance_loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-4) and metrics["mtp_loss"] > 1


def test_a_resumed_run_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    tokenizer, finals = student_tokenizer(), []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        student = build_student(tokenizer)
        config = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
        make_trainer(student, tokenizer, tmp_path, config).train(resume_from_checkpoint=resume)
        finals.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
    assert_same(finals[1], finals[0])


@pytest.mark.parametrize("opened", ["student", "teacher", "both", "neither"])
def test_both_stand_on_the_same_side_of_the_opening_tag(tmp_path: Path, opened: str) -> None:
    """Some templates write the tag as the end of the prompt."""
    tokenizer: Any = build_tokenizer()
    theirs: Any = build_tokenizer()
    for name, each in (("student", tokenizer), ("teacher", theirs)):
        if opened in (name, "both"):
            each.chat_template = each.chat_template.replace(
                "-%}{{- '<｜Assistant｜>' -}}", "-%}{{- '<｜Assistant｜><think>\n' -}}"
            )
            assert "<think>" in each.chat_template
    trainer = make_trainer(build_student(tokenizer, bos_token_id=1), tokenizer, tmp_path, theirs=theirs)
    batch = say(trainer, ["3</think>3"] * 4, [True] * 4)
    row = batch["teacher_ids"][0][batch["teacher_mask"][0].bool()]
    begun = "<think>\n" if opened in ("student", "both") else ""
    assert theirs.decode(row).endswith(f"<｜Assistant｜>{begun}3</think>3<｜end▁of▁sentence｜>")


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    tokenizer = student_tokenizer()
    with pytest.raises(RecipeError, match=r"trainer.beta is 0.5, but alignment is text.*allowed: 1"):
        make_trainer(build_student(tokenizer), tokenizer, tmp_path, {"beta": 0.5})
    theirs = build_tokenizer()
    theirs.name_or_path, theirs.chat_template = "org/teacher", None
    with pytest.raises(RecipeError, match=r"\(org/teacher\) has no chat template, and the prompts are messages"):
        make_trainer(build_student(tokenizer), tokenizer, tmp_path, theirs=theirs).train()
    theirs.eos_token = None
    with pytest.raises(RecipeError, match=r"\(org/teacher\) has no end-of-sequence token"):
        make_trainer(build_student(tokenizer), tokenizer, tmp_path, theirs=theirs)
    teacher = build_teacher()
    with torch.no_grad():
        teacher.model.norm.weight[3] = math.nan
    with pytest.raises(TrainingError, match="the teacher's hidden states are not finite"):
        make_trainer(build_student(tokenizer), tokenizer, tmp_path, teacher=teacher).train()


def test_prompts_may_be_texts(tmp_path: Path) -> None:
    tokenizer = student_tokenizer()
    student = build_student(tokenizer)
    trainer = make_trainer(student, tokenizer, tmp_path, {"max_steps": 1}, prompts=["1+2", "3-4+5", "7", "8+8-1"])
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["divergence"])
