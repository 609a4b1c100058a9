"""Evaluation of reasoning: figures of problems and of all, by hand; its files; and a model's."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from seeklet.finetune.data.rows import Source
from seeklet.finetune.errors import DataError, RecipeError
from seeklet.finetune.evaluation.reasoning import evaluate_reasoning, judge_problem, summarise
from seeklet.finetune.evaluation.reasoning_plot import draw_stages
from seeklet.finetune.evaluation.reasoning_report import as_markdown, stage_rows, summary_table, write_stages
from seeklet.finetune.evaluation.reasoning_results import ReasoningReport, change, read_reasoning_report
from seeklet.finetune.evaluation.reasoning_settings import ReasoningEvaluationSettings
from seeklet.finetune.prompts.read import Prompt
from seeklet.finetune.rewards import RewardSet, RewardSettings
from tests.finetune.characters import VOCABULARY
from tests.finetune.rollout.attempts import TOKENIZER, made, scripted, sums
from tests.modeling.nano import build_ours

FOUR = ReasoningEvaluationSettings(num_samples=4, pass_at=(2, 4), majority_at=(2, 4), max_new_tokens=64)


def problem(number: int, difficulty: Any = None) -> Prompt:
    columns = {"answer": "2"} | ({} if difficulty is None else {"difficulty": difficulty})
    return Prompt([{"role": "user", "content": f"{number}?"}], columns, Source("/secret/test.jsonl", number))


def thought(answer: str, right: bool, **fields: Any) -> Any:
    return made(f"<think>so</think>{answer}", right, **fields)


def test_one_problem() -> None:
    """Two of four are right; one, cut off before its end, has no vote and no form; another has no reasoning."""
    attempts = [
        thought("2", True, num_tokens=10),
        thought(" 2.", True, num_tokens=20),
        thought("3", False, num_tokens=30, finished=False),
        made("3", False, num_tokens=40, reasons={"exact": "why"}),
    ]
    result = judge_problem(problem(3, 7), attempts, FOUR)
    assert result.figures == {
        "pass@1": 0.5,
        "pass@2": pytest.approx(5 / 6),
        "pass@4": 1.0,
        # Pairs: the two 2s, four of a 2 with one that is cut off or a 3: 1, 1, 1, ½, ½; and 3 with nothing: 0.
        "maj@2": pytest.approx(4 / 6),
        "maj@4": 1.0,
        "tokens": 25.0,
        "well_formed": 0.5,
        "reasoned": 0.75,
        "cut_off": 0.25,
        "not_scored": 0.25,
    }
    assert (result.source, result.difficulty, result.num_right) == ("test.jsonl:3", "7", 2)
    assert result.example == {"text": "<think>so</think>2", "num_tokens": 10, "is_right": True}


def report_of(shares: list[int], name: str = "cold start", levels: list[Any] | None = None) -> ReasoningReport:
    """Return a report of problems of which so many of four attempts each are right, with lengths 10, 20, …"""
    results = []
    for number, right in enumerate(shares):
        attempts = [thought("2" if i < right else "3", i < right, num_tokens=10 * (number + 1)) for i in range(4)]
        results.append(judge_problem(problem(number, levels and levels[number]), attempts, FOUR))
    return summarise(name, results, FOUR)


def test_all_problems() -> None:
    report = report_of([4, 2, 0, 0], levels=[2, 10, 10, None])
    values = {name: estimate.value for name, estimate in report.figures.items()}
    assert values["pass@1"] == pytest.approx(37.5)
    assert values["pass@2"] == pytest.approx(100 * (1 + 5 / 6) / 4)
    assert values["pass@4"] == pytest.approx(50)
    assert values["maj@4"] == pytest.approx(100 * (1 + 1 / 2) / 4)
    assert values["tokens"] == pytest.approx(25) and values["well_formed"] == 100
    pass_at_1 = report.figures["pass@1"]
    # Of four problems drawn from these, all are unsolved with 6 %, and all solved by half or more with 6 %.
    assert pass_at_1.low == 0 and 75 <= pass_at_1.high <= 100
    assert list(report.by_difficulty) == ["2", "10"]
    number, figures = report.by_difficulty["10"]
    assert number == 2 and figures["pass@1"].value == 25 and report.by_difficulty["2"][1]["tokens"].value == 10


def test_an_interval_covers_what_it_should() -> None:
    """The textbook interval of a mean of many independent problems: ± 1.96 standard errors."""
    report = report_of([4, 0, 2, 1] * 100)
    share = report.figures["pass@1"]
    deviation = (sum((x - 43.75) ** 2 for x in (100, 0, 50, 25)) / 4 / 400) ** 0.5
    assert share.value == pytest.approx(43.75)
    assert share.high - share.value == pytest.approx(1.96 * deviation, rel=0.1)
    assert share.value - share.low == pytest.approx(1.96 * deviation, rel=0.1)


def test_changes_between_stages() -> None:
    before, after = report_of([0, 1, 2, 3] * 20), report_of([1, 2, 3, 4] * 20, "GRPO")
    difference = change([before, after], 1)
    # Each problem gains a quarter, so nothing blurs the difference.
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((25, 25, 25))
    assert change([before, after], 0) is None and change([before, report_of([1, 2, 3])], 1) is None
    columns, rows = stage_rows([before, after])
    assert columns[:4] == ["stage", "pass@1 (%)", "change", "pass@2 (%)"] and "cut off (%)" not in columns
    assert [row[0] for row in rows] == ["cold start", "GRPO"] and rows[0][2] == ""
    assert rows[1][2] == "+25.0 (+25.0…+25.0)" and rows[1][1].startswith("62.5 (")


def test_files_of_one_model_and_of_stages(tmp_path: Path) -> None:
    reports = [report_of([0, 1, 2, 3], "cold <start>", [1, 1, 2, 2]), report_of([1, 2, 3, 4], "GRPO", [1, 1, 2, 3])]
    write_stages(reports, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stages.json", "stages.md", "stages.png"]
    markdown = (tmp_path / "stages.md").read_text()
    assert "| cold &lt;start> |" in markdown and "| GRPO | 62.5 (" in markdown and "+25.0 (" in markdown
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert stages[1]["change of pass@1"]["value"] == 25 and stages[0]["change of pass@1"] is None
    figure = draw_stages(reports)
    heights = [bar.get_height() for bar in figure.axes[0].patches]  # pyright: ignore[reportAttributeAccessIssue]
    # Stage by stage: pass@1, pass@2, pass@4, …
    assert heights[0] == pytest.approx(37.5) and heights[len(heights) // 2] == pytest.approx(62.5)
    console = Console(width=80)
    with console.capture() as said:
        console.print(summary_table(reports))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.get().splitlines()]
    assert ["pass@1 (%)", "37.5", "62.5"] in lines and ["change", "", "+25.0"] in lines
    assert ["95% interval", "", "+25.0…+25.0"] in lines and ["pass@2 (%)", "58.3", "83.3"] in lines


def test_a_report_is_read_back(tmp_path: Path) -> None:
    settings = ReasoningEvaluationSettings(num_samples=4, max_new_tokens=64, batch_size=8)
    rewards = RewardSet([RewardSettings("exact")])
    right = {"0+1": 4, "1+2": 0, "2+3": 1}
    report = evaluate_reasoning(
        None, TOKENIZER, sums(3), rewards, settings, name="student", folder=tmp_path / "new", sampler=scripted(right)
    )
    assert report.figures["pass@1"].value == pytest.approx(100 * 5 / 12)
    assert report.figures["pass@4"].value == pytest.approx(100 * 2 / 3)
    # Right answers are four of four, none, and one against three that agree.
    assert report.figures["maj@4"].value == pytest.approx(100 / 3)
    assert [result.num_right for result in report.results] == [4, 0, 1]
    assert read_reasoning_report(tmp_path / "new" / "reasoning.json") == report
    markdown = (tmp_path / "new" / "reasoning.md").read_text()
    assert markdown == as_markdown(report) and "| pass@1 (%) | 41.7 |" in markdown
    assert "> \\<think>0+1=1;" in markdown or "&lt;think>0+1=1;" in markdown
    assert (tmp_path / "new" / "reasoning.png").read_bytes().startswith(b"\x89PNG")
    for damaged in ("", "[]", "{}", '{"name": 1}'):
        (tmp_path / "damaged.json").write_text(damaged)
        with pytest.raises(DataError, match=r"damaged.json is no report of an evaluation of reasoning"):
            read_reasoning_report(tmp_path / "damaged.json")


@pytest.mark.parametrize("use_mtp", [False, True])
def test_a_model_and_batches_of_any_size(use_mtp: bool) -> None:
    """Greedy, the figures do not depend on how many problems share a batch."""
    sizes = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = build_ours(**sizes, num_nextn_predict_layers=1)
    rewards = RewardSet([RewardSettings("overlong", settings={"max_tokens": 12, "buffer_tokens": 12})])
    reports = []
    for batch_size in (1, 3):
        settings = ReasoningEvaluationSettings(
            num_samples=1, temperature=0.0, max_new_tokens=12, batch_size=batch_size, threshold=-0.9, use_mtp=use_mtp
        )
        reports.append(evaluate_reasoning(model, TOKENIZER, [*sums(12), *sums(3)], rewards, settings))
    first, second = reports
    assert first.figures == second.figures and first.results == second.results
    assert list(first.figures)[:2] == ["pass@1", "tokens"] and 0 < first.figures["tokens"].value <= 12
    assert [result.source for result in first.results[:2]] == ["sums.jsonl:1", "sums.jsonl:2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 4, "pass_at": (2, 8)}, "pass_at has 8; allowed: up to num_samples, 4"),
        ({"num_samples": 4, "majority_at": (5,)}, "majority_at has 5; allowed: up to num_samples, 4"),
        (
            {"temperature": 0.0},
            "num_samples is 16 and temperature 0, so all are the same; allowed: num_samples 1, or temperature above 0",
        ),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        ReasoningEvaluationSettings(**settings)
    assert str(raised.value) == message


def test_no_reward_that_says_what_is_right() -> None:
    rewards = RewardSet([RewardSettings("format")])
    with pytest.raises(RecipeError, match="threshold: none is given, and no reward verifies answers"):
        evaluate_reasoning(None, TOKENIZER, sums(1), rewards, FOUR, sampler=scripted())


def test_no_problems() -> None:
    with pytest.raises(DataError, match="there are no problems to evaluate on; allowed: at least one"):
        evaluate_reasoning(None, TOKENIZER, [], RewardSet([RewardSettings("exact")]), FOUR, sampler=scripted())
