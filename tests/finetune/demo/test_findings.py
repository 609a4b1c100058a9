"""What a run is held against: by hand, what is reached and what is not, which is told, and which ends in an error."""

from typing import Any

import pytest

from benchmarks import bench_demo
from seeklet.finetune.demo.drafts import DraftSpeed
from seeklet.finetune.demo.findings import Findings, StageFigures
from seeklet.finetune.demo.report import as_json, as_markdown, stage_table
from seeklet.finetune.demo.run import choose_examples
from seeklet.finetune.demo.settings import DemoSettings
from seeklet.finetune.demo.stock_reload import StockReload
from seeklet.finetune.evaluation.reasoning_results import ProblemResult, ReasoningReport, estimate_figures
from seeklet.finetune.prompts.read import Prompt, Source

NUM_PROBLEMS = 100
NAMES = ("cold_start", "grpo", "student_on_answers", "student_on_traces", "on_policy")
RELOAD = StockReload("DeepseekV3ForCausalLM", "5", False, [], ["model.layers.5.a"], 10, 1e-6, 20.0, True)


def report(right: int, samples: int = 1) -> ReasoningReport:
    """Return the figures of a model that is right at the first `right` of 100 problems."""
    results = []
    for index in range(NUM_PROBLEMS):
        is_right = index < right
        text = f"<think>{index}</think>{'right' if is_right else 'wrong'}"
        figures = {"pass@1": float(is_right), "tokens": 20.0, "reasoned": 0.25}
        if samples > 1:
            figures[f"pass@{samples}"] = 0.75
        example = {"text": text, "num_tokens": 20, "is_right": is_right}
        messages = [{"role": "user", "content": f"{index}+1"}]
        results.append(ProblemResult(f"test.jsonl:{index}", messages, None, figures, int(is_right), example))
    settings = {"temperature": 1.0}
    return ReasoningReport("model", NUM_PROBLEMS, samples, estimate_figures(results), {}, results, settings)


def findings(greedy: tuple[int, ...] = (40, 80, 30, 70, 85), sampled: int = 60, **changes: Any) -> Findings:
    """Return findings of greedy accuracies by stage; at temperature 1 GRPO comes from 35 to `sampled`."""
    at_1 = (35, sampled, 20, 50, 60)
    stages = [
        StageFigures(name, "sft", 10.0, report(right), report(drawn, 4))
        for name, right, drawn in zip(NAMES, greedy, at_1, strict=True)
    ]
    stages.insert(2, StageFigures("rollout", "rollout", 100.0, None, None))
    given: dict[str, Any] = {
        "settings": DemoSettings(),
        "stages": stages,
        "parameters": {"teacher": 400, "student": 200},
        "drafts": [DraftSpeed(8, 8, 5, 1000.0, 1400.0, 1.4, 1.35, 1.5)],
        "reload": RELOAD,
        "examples": [],
        "seconds": 470.0,
        "resumed": False,
        "machine": {"system": "Linux", "processor": "x86_64", "cores": 2},
        "versions": {"torch": "2"},
    }
    return Findings(**given | changes)


def reached(found: Findings) -> list[bool | None]:
    return [target.reached for target in found.targets()]


def test_all_is_reached() -> None:
    found = findings()
    assert reached(found) == [True] * 7
    assert [target.got.partition(" ")[0] for target in found.targets()] == [
        *("+40.0", "+25.0", "+40.0", "+5.0", "50.0%", "1.40x", "7.8")
    ]
    assert found.failed_checks() == []


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"greedy": (51, 80, 30, 70, 85)}, [0]),
        ({"sampled": 59}, [1]),
        ({"greedy": (40, 80, 46, 70, 85)}, [2]),
        ({"greedy": (40, 80, 30, 70, 79)}, [3]),
        ({"parameters": {"teacher": 400, "student": 221}}, [4]),
        ({"drafts": [DraftSpeed(8, 8, 5, 1000.0, 1290.0, 1.29, 1.2, 1.4)]}, [5]),
        ({"seconds": 481.0}, [6]),
    ],
)
def test_what_is_missed_is_told_and_is_no_error(changes: dict[str, Any], missed: list[int]) -> None:
    found = findings(**changes)
    assert [index for index, each in enumerate(reached(found)) if not each] == missed
    assert found.failed_checks() == []


def test_each_number_of_rows_is_told() -> None:
    speeds = [DraftSpeed(rows, 8, 5, 1.0, rows / 10, rows / 10, 0, 9) for rows in (10, 20)]
    assert reached(findings(drafts=speeds))[5:7] == [False, True]


def test_the_time_of_a_part_says_nothing_of_the_whole() -> None:
    target = findings(resumed=True, seconds=60.0).targets()[-1]
    assert target.reached is None and target.got == "1.0 min, the part after an interruption"


# With 95 % confidence, 40 of 100 are up to 49 %, 55 at least 45 %, and 65 at least 56 %.
@pytest.mark.parametrize(("after", "fails"), [(40, True), (55, True), (65, False)])
def test_reinforcement_must_clearly_raise_accuracy(after: int, fails: bool) -> None:
    found = findings((40, after, 30, 70, 85))
    assert bool(found.failed_checks()) == fails
    if fails:
        [failure] = found.failed_checks()
        assert failure.startswith("GRPO did not clearly raise greedy accuracy: the 95 % interval before ends at 49.0 %")
    assert not findings((40, after, 30, 70, 85), settings=DemoSettings(quick=True)).failed_checks()


def test_another_function_in_stock_transformers_is_an_error() -> None:
    other = StockReload("DeepseekV3ForCausalLM", "5", False, [], [], 10, 1.0, 20.0, True)
    for quick in (False, True):
        [failure] = findings(reload=other, settings=DemoSettings(quick=quick)).failed_checks()
        assert "stock transformers computes other logits" in failure
    assert f"**CHECK FAILED: {failure}.**" in as_markdown(findings(reload=other))


def test_table_by_hand() -> None:
    heads, rows = stage_table(findings())
    assert heads == [
        *("stage", "pass@1, greedy (%)", "pass@1, T = 1 (%)", "pass@4 (%)", "thinks (%)", "tokens", "time")
    ]
    assert [row[0] for row in rows] == ["cold_start", "grpo", "rollout", *NAMES[2:]]
    grpo = rows[1]
    assert [text.partition(" ")[0] for text in grpo[1:6]] == ["80.0", "60.0", "75.0", "25.0", "20.0"]
    low, high = map(float, grpo[1].partition("(")[2].strip(")").split("…"))
    # The normal interval of a share is 80 ± 1.96 * 4.
    assert abs(low - 72.2) < 1.1 and abs(high - 87.8) < 1.1
    assert rows[2][1:] == ["–"] * 5 + ["2 min"]


def test_examples_are_the_first_that_grpo_taught_and_the_first_wrong() -> None:
    problems = [
        Prompt([{"role": "user", "content": f"{index}+1"}], {"answer": str(index + 1)}, Source("test.jsonl", index))
        for index in range(NUM_PROBLEMS)
    ]
    rights = (40, 80, 30, 70, 85)
    reports = {name: report(right) for name, right in zip(NAMES, rights, strict=True)}
    examples = choose_examples(problems, reports)
    assert [(each.prompt, each.answer) for each in examples] == [("40+1", "41"), ("41+1", "42"), ("85+1", "86")]
    assert examples[0].said["cold_start"] == ("<think>40</think>wrong", False)
    assert examples[0].said["grpo"] == ("<think>40</think>right", True)
    untaught = choose_examples(problems, dict.fromkeys(NAMES, report(0)))
    assert [each.prompt for each in untaught] == ["0+1", "1+1"]


def test_seeds_beside_each_other() -> None:
    found = {0: as_json(findings()), 7: as_json(findings((51, 80, 30, 70, 85)))}
    lines = bench_demo.target_lines(found)
    assert lines[0] == "| what | asked | seed 0 | seed 7 | met in every seed |" and len(lines) == 2 + 7
    assert (
        lines[2].startswith("| GRPO over cold start, greedy | at least +30 points | +40.0 (+")
        and " | +29.0 (" in lines[2]
    )
    assert [line.rpartition(" | ")[2] for line in lines[2:]] == ["no |"] + ["yes |"] * 6
    assert bench_demo.values(found)["GRPO over cold start, greedy, seed 7"] == pytest.approx(29)
    stages = bench_demo.stage_lines(found)
    assert stages[4].startswith("| grpo | 0 | 80.0 (") and stages[6] == "| rollout | 0 |  |  |  |  | 100 |"


def test_reports_say_the_same() -> None:
    problems = [Prompt([{"role": "user", "content": "0+1"}], {"answer": "1"}, Source("test.jsonl", 0))]
    examples = choose_examples(problems, {name: report(1) for name in NAMES})
    found = findings(examples=examples)
    content, text = as_json(found), as_markdown(found)
    assert content["stages"][1]["greedy"]["pass@1"]["value"] == 80.0 and content["stages"][2]["greedy"] is None
    assert [target["reached"] for target in content["targets"]] == [True] * 7
    assert content["parameters"] == {"teacher": 400, "student": 200, "student_share": 0.5}
    for part in ("| grpo | 80.0 (", "| yes |", "`0+1` is `1`:", "<think>0</think>right", "grpo/plots/reward.png"):
        assert part in text
    assert "rows at a time: 8 | at least 1.3x tokens/s | 1.40x | yes" in text
