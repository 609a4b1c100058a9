"""Caches of a teacher's most likely tokens: what they hold, how they survive, and what a student learns from them."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.distill.divergence import generalized_jsd, log_softmax
from seeklet.finetune.distill.settings import OfflineSettings
from seeklet.finetune.distill.topk_files import MANIFEST, read_manifest
from seeklet.finetune.distill.topk_reader import TopKCache
from seeklet.finetune.distill.topk_trainer import SeekletTopKTrainer
from seeklet.finetune.errors import DataError, RecipeError, TrainingError
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.losses import use_head_loss
from tests.finetune.characters import build_tokenizer
from tests.finetune.distill.caches import TOP, make_rows, write
from tests.finetune.distill.on_policy import SIZES, build_dense, build_teacher
from tests.finetune.nano_checkpoints import CHATML
from tests.finetune.nano_checkpoints import build_tokenizer as build_chatml
from tests.modeling.nano import build_ours, relative_error
from tests.modeling.tensors import assert_same

ROOT = Path(__file__).resolve().parents[3]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def conversations(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Return tokens and marks of each conversation in a row."""
    found, start = [], 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        part = slice(start, start + length)
        found.append((row["input_ids"][part], row["assistant_masks"][part]))
        start += length
    return found


def teacher_log_p(row: dict[str, Any]) -> torch.Tensor:
    """Return the teacher's log-probabilities in front of each labelled token, each conversation read alone."""
    teacher, found = build_teacher(), []
    for tokens, marks in conversations(row):
        with torch.no_grad():
            log_p = log_softmax(teacher(torch.tensor([tokens])).logits[0])
        found += [log_p[i - 1] for i in range(1, len(tokens)) if marks[i]]
    return torch.stack(found)


@pytest.mark.parametrize("packed", [False, True])
def test_a_cache_holds_the_teachers_most_likely_tokens(tmp_path: Path, packed: bool) -> None:
    rows = make_rows(packed)
    manifest = write(tmp_path, rows)
    cache = TopKCache(tmp_path)
    assert cache.manifest == manifest and manifest.is_complete
    assert [(s.first, s.num_rows) for s in manifest.shards] == (
        [(0, 3), (3, 1)] if packed else [(0, 3), (3, 3), (6, 2)]
    )
    for number in range(len(rows)):
        expected = teacher_log_p(rows[number])
        tokens, log_probs = cache.read(number)
        top = expected.topk(TOP)
        assert torch.equal(tokens, top.indices)
        # Half precision: 11 bits.
        torch.testing.assert_close(log_probs[:, :-1], top.values, rtol=6e-4, atol=1e-5)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(len(tokens)), rtol=2e-3, atol=0)


@pytest.mark.parametrize(("vocabulary", "expected"), [(SIZES["vocab_size"], 130), (2**16 + 1, 194)])
def test_bytes_per_position(tmp_path: Path, vocabulary: int, expected: int) -> None:
    """As the docstring of `write_topk` says: 32 tokens of a small and of a large vocabulary."""
    rows = make_rows(lengths=(200,) * 20)
    teacher = build_teacher(vocab_size=vocabulary)
    manifest = write(tmp_path, rows, teacher, num_tokens=32, rows_per_shard=100, batch_size=20)
    positions = manifest.shards[0].num_tokens
    assert positions == 20 * 198
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert expected <= size / positions < expected + 1


def assert_goes_on(folder: Path, num_done: int) -> None:
    """Assert that what was interrupted behind so many shards becomes the whole, and makes only what is missing."""
    write(folder.parent / "whole")
    assert len(list(folder.glob("shard*"))) == num_done
    if num_done:
        with pytest.raises(DataError, match=r"manifest.json: 3 of 8 rows are there; let the teacher run again"):
            TopKCache(folder)
    read: list[int] = []
    write(folder, on_tokens=read.append)
    # Two batches make a shard, but the last.
    assert len(read) == 5 - 2 * num_done
    assert files(folder) == files(folder.parent / "whole")


def test_killed_and_run_again_it_is_the_same_to_the_last_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.finetune.distill.caches", str(tmp_path / "killed"), "4"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-500:]
    assert_goes_on(tmp_path / "killed", 1)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_interrupted_and_run_again_it_is_the_same_to_the_last_byte(tmp_path: Path, batches: int) -> None:
    read = []

    def interrupt(number: int) -> None:
        read.append(number)
        if len(read) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", on_tokens=interrupt)
    assert_goes_on(tmp_path / "stopped", (batches - 1) // 2)


def test_a_whole_cache_is_not_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    before, read = files(tmp_path), []
    write(tmp_path, on_tokens=read.append)
    assert read == [] and files(tmp_path) == before


def test_a_missing_shard_is_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    before, read = files(tmp_path), []
    (tmp_path / "shard-00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard-00001.safetensors: is missing; delete it and let"):
        TopKCache(tmp_path)
    write(tmp_path, on_tokens=read.append)
    assert len(read) == 2 and files(tmp_path) == before


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_shard_is_one_error(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-3])
    words = r"^\S*shard-00001.safetensors: is damaged: its SHA-256 is .{12}…, expected .{12}…; delete it [^\n]*$"
    for run in (TopKCache, write):
        with pytest.raises(DataError, match=words):
            run(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"is damaged \(JSONDecodeError"),
        ("[]", r"is damaged \(AttributeError"),
        ('{"format": 1}', r"is damaged \(KeyError"),
        ('{"format": 7}', r"format is 7; allowed: 1"),
        ('{"format": 1, "shards": [], "rows": 3}', r"is damaged \(TypeError"),
    ],
)
def test_a_damaged_manifest_is_one_error(tmp_path: Path, content: str, words: str) -> None:
    write(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    for run in (TopKCache, write):
        with pytest.raises(DataError, match=rf"^\S*manifest.json: {words}[^\n]*$"):
            run(tmp_path)


def test_other_settings_data_and_teachers_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"num_tokens is 5, and now it is 6; allowed: the same teacher"):
        write(tmp_path, num_tokens=6)
    with pytest.raises(DataError, match="data_sha256 is"):
        write(tmp_path, make_rows().select(range(7, -1, -1)))
    teacher = build_teacher()
    with torch.no_grad():
        teacher.lm_head.weight.add_(0.1)
    with pytest.raises(DataError, match="teacher_sha256 is"):
        write(tmp_path, teacher=teacher)
    assert read_manifest(tmp_path).teacher == "org/teacher"


def test_no_folder_of_this_machine_is_written_down(tmp_path: Path) -> None:
    write(tmp_path / "cache", name=str(tmp_path / "model"))
    text = (tmp_path / "cache" / MANIFEST).read_text()
    assert json.loads(text)["teacher"] == "model" and str(tmp_path) not in text


def test_rows_the_teacher_cannot_read_are_named(tmp_path: Path) -> None:
    empty = Dataset.from_list([*make_rows().to_list(), {"input_ids": [5, 6, 7], "assistant_masks": [1, 0, 0]}])
    with pytest.raises(DataError, match=r"^row 8 has nothing to learn: no token of it is marked"):
        write(tmp_path, empty)
    unknown = Dataset.from_list([{"input_ids": [5, 6, 32], "assistant_masks": [0, 0, 1]}])
    with pytest.raises(DataError, match=r"^row 0 has token 32, and the teacher knows 32"):
        write(tmp_path, unknown)
    with pytest.raises(RecipeError, match=r"num_tokens is 33; allowed: at most the teacher's 32 logits"):
        write(tmp_path, num_tokens=33)
    teacher = build_teacher()
    with torch.no_grad():
        teacher.model.norm.weight[3] = math.nan
    with pytest.raises(TrainingError, match="the teacher's probabilities are not finite"):
        write(tmp_path, teacher=teacher)


def train(student: Any, folder: Path, cache: Path, rows: Dataset | None = None, **settings: Any) -> SeekletTopKTrainer:
    """Return a trainer that steps without momentum and takes the rows in order."""
    options = {name: settings.pop(name) for name in ("mtp_loss",) if name in settings}
    offline = OfflineSettings(beta=settings.pop("beta", 0.0))
    validation, tokenizer = settings.pop("validation", None), settings.pop("tokenizer", build_tokenizer())
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "report_to": "none",
        "disable_tqdm": True,
    }
    return SeekletTopKTrainer(
        student if isinstance(student, PeftModel) else use_head_loss(student),
        SFTConfig(output_dir=str(folder), **defaults | settings),
        tokenizer,
        make_rows() if rows is None else rows,
        validation,
        cache=TopKCache(cache),
        settings=offline,
        **options,
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["dense", "seeklet"])
def test_all_tokens_kept_the_step_is_that_of_the_whole_divergence(
    tmp_path: Path, kind: str, beta: float, packed: bool
) -> None:
    def build() -> Any:
        return build_dense() if kind == "dense" else build_ours(**SIZES, balance_loss_weight=0.0)

    rows = make_rows(packed)
    write(tmp_path, rows, num_tokens=SIZES["vocab_size"])
    number = {"per_device_train_batch_size": 1} if packed else {}
    trainer = train(student := build(), tmp_path / "run", tmp_path, rows, beta=beta, max_steps=1, **number)
    trainer.train()
    expected, values = build(), []
    for row in list(rows)[: 2 if packed else 4]:
        assert isinstance(row, dict)
        logits = [expected(torch.tensor([tokens])).logits[0] for tokens, _ in conversations(row)]
        marks = [marks for _, marks in conversations(row)]
        kept = [x[i - 1] for x, m in zip(logits, marks, strict=True) for i in range(1, len(m)) if m[i]]
        values.append(generalized_jsd(log_softmax(torch.stack(kept)), teacher_log_p(row), beta))
    loss = torch.cat(values).mean()
    loss.backward()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=2e-3)
    assert logged["divergence"] == pytest.approx(logged["loss"], rel=1e-4)
    before = build().state_dict()
    moved = {name: (before[name] - tensor) / 0.5 for name, tensor in student.named_parameters()}
    for name, parameter in expected.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert relative_error(moved[name], gradient) < 0.02 or gradient.norm() < 1e-5, name


def test_few_tokens_kept_teach_nearly_as_well(tmp_path: Path) -> None:
    """The divergence over all tokens, of a student that has seen the five most likely of 32."""
    rows, finals = make_rows(), {}
    for number in (TOP, SIZES["vocab_size"]):
        write(tmp_path / str(number), rows, num_tokens=number)
        student = build_dense()
        settings = {"max_steps": 60, "optim": "adamw_torch", "learning_rate": 1e-2}
        train(student, tmp_path / "run", tmp_path / str(number), **settings).train()
        with torch.no_grad():
            values = [
                generalized_jsd(log_softmax(student(torch.tensor([row["input_ids"]])).logits[0, 1:-1]), p, 0.0)
                for row in rows
                if isinstance(row, dict) and (p := teacher_log_p(row)) is not None
            ]
        finals[number] = torch.cat(values).mean().item()
    assert finals[SIZES["vocab_size"]] < 0.05 and finals[TOP] < finals[SIZES["vocab_size"]] + 0.3


def test_a_seeklet_student_keeps_its_own_losses(tmp_path: Path) -> None:
    write(tmp_path)
    student = build_ours(**SIZES, num_nextn_predict_layers=1, mtp_loss_weight=0.3, balance_loss_weight=0.05)
    trainer = train(student, tmp_path / "run", tmp_path, max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    expected = entry["divergence"] + 0.3 * entry["mtp_loss"] + 0.05 * entry["balance_loss"]
    assert entry["loss"] == pytest.approx(expected, rel=1e-4)
    assert entry["mtp_loss"] > 1 and entry["balance_loss"] > 0.5


def test_held_out_rows_are_measured_by_cross_entropy(tmp_path: Path) -> None:
    write(tmp_path)
    student = build_dense()
    held_out = make_rows(lengths=(9, 6))
    trainer = train(student, tmp_path / "run", tmp_path, validation=held_out)
    measured = trainer.evaluate()["eval_loss"]
    losses = []
    for row in held_out:
        assert isinstance(row, dict)
        with torch.no_grad():
            log_p = log_softmax(student(torch.tensor([row["input_ids"]]), use_cache=False).logits[0])
        losses += [-log_p[i - 1, row["input_ids"][i]].item() for i in range(2, len(row["input_ids"]))]
    assert measured == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_resumed_run_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    write(tmp_path)
    finals = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-2")):
        student = build_dense()
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
        train(student, tmp_path / "run", tmp_path, **settings).train(resume_from_checkpoint=resume)
        finals.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
    assert_same(finals[1], finals[0])


def test_other_rows_and_students_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"is of 8 rows, and the data has 7"):
        train(build_dense(), tmp_path / "run", tmp_path, make_rows().select(range(7)))
    with pytest.raises(DataError, match=r"^row 0 is not the one that the teacher has read"):
        train(build_dense(), tmp_path / "run", tmp_path, make_rows().select(range(7, -1, -1)))
    tokenizer = build_chatml(CHATML)
    tokenizer.name_or_path = "org/student"
    with pytest.raises(RecipeError, match=r"tokens of org/teacher, which are not those of the student \(org/student, "):
        train(build_dense(), tmp_path / "run", tmp_path, tokenizer=tokenizer)
    padded = tmp_path / "padded"
    write(padded, teacher=build_teacher(vocab_size=40))
    with pytest.raises(RecipeError, match=r"over 40 logits of org/teacher, and the student has 32"):
        train(build_dense(), tmp_path / "run", padded)
    write(tmp_path / "cut", teacher=build_teacher(vocab_size=40), num_shared=32)
    train(build_dense(), tmp_path / "run", tmp_path / "cut", max_steps=1).train()


@pytest.mark.parametrize("kind", ["dense", "seeklet"])
def test_an_adapter_learns_from_a_cache(tmp_path: Path, kind: str) -> None:
    """With gradient checkpointing; an adapter that does nothing yet has the loss of the model without it."""
    write(tmp_path)
    losses = []
    for is_adapted in (False, True):
        student: Any = use_head_loss(build_dense()) if kind == "dense" else build_ours(**SIZES)
        before = {name: tensor.clone() for name, tensor in student.named_parameters()}
        # Two steps see all rows, so that the ninth has those of the first.
        settings: dict[str, Any] = {"max_steps": 9}
        if is_adapted:
            student = attach(student, AdapterSettings(targets=("attention",), rank=2, alpha=8)).train()
            checkpointing = {"use_reentrant": False}
            settings |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": checkpointing}
        trainer = train(student, tmp_path / "run", tmp_path, **settings)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5) and losses[1][8] < losses[1][0]
    base = {name.replace(".base_layer", ""): p for name, p in student.get_base_model().named_parameters()}
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())
