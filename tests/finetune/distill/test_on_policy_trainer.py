"""On-policy distillation against TRL's on the same batch, and what TRL's does not have."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DistillationTrainer

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.distill.vocabulary import describe_split_tags, shared_vocabulary
from seeklet.finetune.errors import RecipeError, TrainingError
from seeklet.finetune.lora.attach import attach
from tests.finetune.characters import THINK, build_tokenizer
from tests.finetune.distill.on_policy import (
    NUM_PROMPT,
    PROMPTS,
    SIZES,
    batch,
    build_dense,
    build_teacher,
    make_config,
    make_trainer,
)
from tests.finetune.nano_checkpoints import CHATML
from tests.finetune.nano_checkpoints import build_tokenizer as build_chatml
from tests.modeling.nano import build_ours, relative_error
from tests.modeling.tensors import assert_same


def states(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_loss_and_gradient_are_trls(tmp_path: Path, beta: float, temperature: float) -> None:
    data = Dataset.from_dict({"prompt": PROMPTS})
    fields = {"beta": beta, "temperature": temperature}
    students, results = [build_dense(), build_dense()], []
    trainers: list[Any] = [
        make_trainer(students[0], build_teacher(), tmp_path, fields),
        DistillationTrainer(
            students[1],
            build_teacher(),
            make_config(tmp_path, **fields),
            train_dataset=data,
            processing_class=build_tokenizer(),
        ),
    ]
    for trainer, student in zip(trainers, students, strict=True):
        student.train()
        loss = trainer.compute_loss(student, batch())
        loss.backward()
        entropy = torch.tensor(trainer._metrics["train"]["entropy"])
        results.append([loss.detach(), entropy, *(parameter.grad for parameter in student.parameters())])
    assert len(results[0]) > 10 and all(gradient.any() for gradient in results[0])
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 2e-5


@pytest.mark.parametrize("student", [build_dense, lambda: build_ours(seed=1, **SIZES, num_nextn_predict_layers=1)])
def test_the_student_comes_closer(tmp_path: Path, student: Any) -> None:
    config = {"max_steps": 40, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    trainer = make_trainer(student(), build_teacher(), tmp_path, config)
    trainer.train()
    values = [entry["divergence"] for entry in trainer.state.log_history if "divergence" in entry]
    assert len(values) == 40 and sum(values[-5:]) < 0.5 * sum(values[:5])


def test_the_loss_of_a_seeklet_student_has_its_own_parts(tmp_path: Path) -> None:
    """Detached multi-token prediction reaches its modules only; divergence and balance loss the rest."""
    gradients, losses = {}, {}
    for mode in ("off", "detached", "full"):
        model = build_ours(**SIZES, num_nextn_predict_layers=1, mtp_loss_weight=0.3, balance_loss_weight=0.0)
        trainer = make_trainer(model, build_teacher(), tmp_path, mtp_loss=mode)
        loss = trainer.compute_loss(model, batch())
        loss.backward()
        losses[mode] = loss.item() - 0.3 * sum(trainer._metrics["train"]["mtp_loss"])
        gradients[mode] = {name: p.grad for name, p in model.named_parameters()}
    assert losses["detached"] == pytest.approx(losses["off"], rel=1e-6)
    assert losses["full"] == pytest.approx(losses["off"], rel=1e-6)
    module, main = "model.layers.3.eh_proj.weight", "model.layers.0.self_attn.o_proj.weight"
    assert gradients["off"][module] is None and gradients["detached"][module].any()
    assert relative_error(gradients["detached"][main], gradients["off"][main]) < 1e-6
    assert relative_error(gradients["full"][main], gradients["off"][main]) > 0.01


def test_hidden_states_of_a_seeklet_student_are_those_its_head_takes(tmp_path: Path) -> None:
    """Its loss without multi-token prediction and balance is that of the stock path, which takes the decoder alone."""
    model = build_ours(**SIZES, balance_loss_weight=0.0)
    trainer = make_trainer(model, build_teacher(), tmp_path)
    in_training = trainer.compute_loss(model.train(), batch())
    with torch.no_grad():
        without_gradient = trainer.compute_loss(model, batch())
    assert in_training.item() == pytest.approx(without_gradient.item(), rel=1e-6)


def test_the_balance_loss_reaches_the_gradient(tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 1.0):
        model = build_ours(**SIZES, balance_loss_weight=weight)
        trainer = make_trainer(model, build_teacher(), tmp_path)
        loss = trainer.compute_loss(model, batch())
        loss.backward()
        found.append((loss.item(), model.model.layers[1].mlp.gate.weight.grad))
    assert found[1][0] - found[0][0] == pytest.approx(sum(trainer._metrics["train"]["balance_loss"]), rel=1e-4)
    assert relative_error(found[1][1], found[0][1]) > 0.01


@pytest.mark.parametrize("speed", [0.0, 0.01])
def test_router_biases_stay_unless_they_are_to_move(tmp_path: Path, speed: float) -> None:
    model = build_ours(**SIZES, bias_update_speed=0.5)
    router = model.model.layers[1].mlp.gate
    before = router.e_score_correction_bias.clone()
    make_trainer(model, build_teacher(), tmp_path, {"max_steps": 1}, bias_update_speed=speed).train()
    moved = (router.e_score_correction_bias - before).abs()
    torch.testing.assert_close(moved.max(), torch.tensor(speed))


def test_the_teacher_stays_as_it_is(tmp_path: Path) -> None:
    teacher = build_teacher()
    before = states(teacher)
    make_trainer(build_dense(), teacher, tmp_path).train()
    assert_same(states(teacher), before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["dense", "seeklet"])
def test_a_resumed_run_is_the_same_bit_by_bit(tmp_path: Path, kind: str) -> None:
    """With accumulation, so that samples are made once for several micro-batches, and evaluation in between."""
    finals, logs = [], []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        student = build_dense() if kind == "dense" else build_ours(**SIZES, num_nextn_predict_layers=1)
        config = {
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
        }
        trainer = make_trainer(student, build_teacher(), tmp_path, config)
        trainer.train(resume_from_checkpoint=resume)
        finals.append(states(student))
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[0] == logs[1] and len(set(logs[0])) == 4
    assert_same(finals[1], finals[0])


def test_padded_vocabularies(tmp_path: Path) -> None:
    """Qwen2.5's differ in rows behind the last token; the loss is that over the shared ones."""
    losses = []
    for size in (0, 9):
        teacher = build_teacher(vocab_size=SIZES["vocab_size"] + size)
        if size:
            with torch.no_grad():
                for at in ("model.embed_tokens.weight", "lm_head.weight"):
                    teacher.get_parameter(at)[:-size] = build_teacher().get_parameter(at)
            others = {k: v for k, v in build_teacher().state_dict().items() if "embed" not in k and "lm_head" not in k}
            teacher.load_state_dict(others, strict=False)
        student = build_dense()
        losses.append(make_trainer(student, teacher, tmp_path).compute_loss(student, batch()).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_tokenizers_that_differ_are_both_named(tmp_path: Path) -> None:
    student, teacher = build_tokenizer(), build_chatml(CHATML)
    student.name_or_path, teacher.name_or_path = "org/student", "org/teacher"
    with pytest.raises(RecipeError) as raised:
        make_trainer(build_dense(), build_teacher(), tmp_path, tokenizers=(student, teacher))
    for words in ("the first is 0", "'<｜pad｜>' of the student (org/student, 32", "(org/teacher", "alignment: text"):
        assert words in str(raised.value)
    extended = build_tokenizer()
    extended.add_tokens(["<tool>"])
    with pytest.raises(RecipeError, match=r"1 of them differ, the first is 32, which is none of the student"):
        shared_vocabulary(build_tokenizer(), extended, 40, 40)
    with pytest.raises(RecipeError, match=r"student \(32 tokens\) writes token 31, and the student has 30 logits"):
        shared_vocabulary(build_tokenizer(), build_tokenizer(), 30, 40)
    assert shared_vocabulary(build_tokenizer(), build_tokenizer(), 41, 40) == 40


def test_tags_of_several_tokens_are_a_warning() -> None:
    tokenizer = build_chatml(CHATML)
    tokenizer.name_or_path = "org/small"
    number = len(tokenizer.encode(THINK, add_special_tokens=False))
    assert number > 1
    warning = describe_split_tags(tokenizer)
    assert (
        warning is not None and f"(org/small, {len(tokenizer):,} tokens) writes <think> as {number} tokens" in warning
    )
    assert describe_split_tags(build_tokenizer()) is None


def test_a_teacher_that_says_nothing_finite_is_one_error(tmp_path: Path) -> None:
    teacher = build_teacher()
    with torch.no_grad():
        teacher.model.norm.weight[3] = math.nan
    with pytest.raises(TrainingError, match=r"step 1: the teacher's hidden states are not finite.*no checkpoint yet"):
        make_trainer(build_dense(), teacher, tmp_path).train()


def test_a_student_that_diverges_is_one_error(tmp_path: Path) -> None:
    student = build_dense()
    trainer = make_trainer(student, build_teacher(), tmp_path)
    student.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"step 1: the norm of the gradient is nan, so training has failed"):
        trainer.train()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.0}, "trainer.temperature is 0; allowed: above 0"),
        ({"repetition_penalty": 1.2}, "trainer.repetition_penalty is 1.2; allowed: 1"),
        ({"max_completion_length": 0}, "trainer.max_completion_length is 0; allowed: at least 1"),
        ({"generation_kwargs": {"num_beams": 2}}, "trainer.generation_kwargs is"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_trainer(build_dense(), build_teacher(), tmp_path, fields)


@pytest.mark.parametrize("drafts", [False, True])
def test_a_completion_of_nothing_but_its_end_is_learned_from(tmp_path: Path, drafts: bool) -> None:
    student = build_ours(**SIZES, num_nextn_predict_layers=1)
    with torch.no_grad():
        student.lm_head.weight.zero_()
        # The mean of all hidden states is not 0 along every direction, so the end is not always the most likely.
        student.lm_head.weight[2] = 0
    trainer: Any = make_trainer(student, build_teacher(), tmp_path, drafts=drafts)
    made = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS])
    made["completion_ids"], made["completion_mask"] = (
        x[:, :1] for x in (made["completion_ids"], made["completion_mask"])
    )
    made["completion_ids"][:] = 2
    made["num_items_in_batch"] = torch.tensor(len(PROMPTS))
    loss = trainer.compute_loss(student, made)
    loss.backward()
    assert math.isfinite(loss.item()) and student.lm_head.weight.grad.any()
    assert made["prompt_ids"].shape[1] >= NUM_PROMPT - 1


def adapted(student: Any) -> Any:
    return attach(student, AdapterSettings(targets=("attention",), rank=2, alpha=8)).train()


@pytest.mark.parametrize("kind", ["dense", "seeklet"])
def test_an_adapter_is_trained_and_resumed(tmp_path: Path, kind: str) -> None:
    """With gradient checkpointing; the model behind the adapter stays as it is."""
    finals = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        torch.manual_seed(0)
        student = adapted(build_dense() if kind == "dense" else build_ours(**SIZES))
        before = states(student)
        config = {
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
        make_trainer(student, build_teacher(), tmp_path, config).train(resume_from_checkpoint=resume)
        finals.append(states(student))
    assert_same(finals[1], finals[0])
    moved = {name for name, tensor in finals[0].items() if not torch.equal(tensor, before[name])}
    assert moved and all("lora_" in name for name in moved)
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["dense", "seeklet"])
def test_checkpointing_and_an_adapter_that_does_nothing_yet_change_no_loss(tmp_path: Path, kind: str) -> None:
    losses = []
    for checkpointing in (False, True):
        student = build_dense() if kind == "dense" else build_ours(**SIZES, num_nextn_predict_layers=1)
        model = adapted(student) if checkpointing else student
        config = {"gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        trainer = make_trainer(model, build_teacher(), tmp_path, config if checkpointing else {})
        loss = trainer.compute_loss(model, batch())
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert any(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if "lora_" in name)


def test_held_out_prompts_are_measured(tmp_path: Path) -> None:
    """The mean divergence over their samples; nothing is learned from them."""
    student = build_dense()
    before = states(student)
    held_out = Dataset.from_dict({"prompt": PROMPTS})
    trainer = make_trainer(student, build_teacher(), tmp_path, validation=held_out)
    figures = trainer.evaluate()
    entry = trainer.state.log_history[-1]
    assert entry["eval_divergence"] == pytest.approx(figures["eval_loss"], rel=1e-4) and entry["eval_divergence"] > 0.1
    assert_same(states(student), before)
