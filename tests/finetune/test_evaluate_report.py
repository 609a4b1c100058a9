"""An evaluation as people and programs read it."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from seeklet.finetune.evaluation import progress
from seeklet.finetune.evaluation.findings import Evaluation, Side
from seeklet.finetune.evaluation.generation import Answer
from seeklet.finetune.evaluation.markdown import cell, literal, quote, table
from seeklet.finetune.evaluation.measures import with_ones
from seeklet.finetune.evaluation.plot import draw_comparisons
from seeklet.finetune.evaluation.progress import row_progress
from seeklet.finetune.evaluation.questions import Question
from seeklet.finetune.evaluation.report import summary_table, write_report
from seeklet.finetune.evaluation.scores import EXACT_MATCH, LOSS

SETTINGS = {"num_samples": 1, "max_new_tokens": 9, "batch_size": 4, "use_mtp": True}


def side(path: str, losses: list[list[float]], matches: list[float], **changes: Any) -> Side:
    answers = [Answer("<think>3|4</think>\nIt *costs* 7.", 9, finished=False), Answer("Yes.", 3, finished=True)]
    return Side(path, {LOSS: np.array(losses), EXACT_MATCH: with_ones(matches)}, answers, 2.0, **changes)


def evaluation(after: bool = True, harness: bool = False) -> Evaluation:
    scores = [{"gsm8k": {"acc": (0.25, 0.05)}}, {"gsm8k": {"acc": (0.5, None)}}] if harness else [{}, {}]
    questions = [
        Question([{"role": "user", "content": "What does it cost?\n# Now"}], "7", "faq_1.csv:2", [1], thinking=False),
        Question([{"role": "user", "content": "Really?"}], "Yes.", "faq_1.csv:5", [1], thinking=False),
    ]
    later = side("run/adapter", [[2.0, 2.0], [1.0, 1.0]], [1.0, 1.0], harness=scores[1])
    return Evaluation(
        before=side("base", [[6.0, 2.0], [3.0, 1.0]], [0.0, 1.0], harness=scores[0]),
        after=later if after else None,
        num_conversations=2,
        questions=questions,
        data={"train": ["faq_1.csv"]},
        settings=SETTINGS,
        versions={"seeklet": "0.1.0"},
    )


def test_markdown(tmp_path: Path) -> None:
    file = write_report(evaluation(harness=True), tmp_path / "new")
    text = file.read_text(encoding="utf-8")
    # Loss 9 / 3 and 3 / 3 in every resample; of two matches, one and then both.
    loss = "3.000 (3.000 to 3.000) | 1.000 (1.000 to 1.000) | -2.000 (-2.000 to -2.000) | better"
    assert f"| loss (nats per token) | {loss} |" in text
    match = "50.0 (0.0 to 100.0) | 100.0 (100.0 to 100.0) | +50.0 (+0.0 to +100.0) | unclear"
    assert f"| exact match (%) | {match} |" in text
    sample = (
        "### 1. faq\\_1.csv:2\n\n**user**\n\n> What does it cost?  \n> \\# Now  \n\n| before | after | in the data |\n"
        "| --- | --- | --- |\n"
    )
    assert sample in text
    answer = "&lt;think>3\\|4&lt;/think><br>It \\*costs\\* 7. *(cut off after 9 tokens)*"
    assert f"| {answer} | {answer} | 7 |" in text
    # Twelve tokens in two seconds; one of two was cut off, on each side.
    # Where the data has 1 + 4 characters they have 13 + 4, the reasoning left out.
    assert "(6 and 6 on average, 1 and 1 cut off; 340 and 340 % as long as those in the data)" in text
    assert "ran at 6 and 6 tokens a second, 4 at a time, with multi-token-prediction drafts." in text
    assert "chrF" not in text
    assert "| gsm8k | acc | 0.2500 ± 0.0500 | 0.5000 |" in text
    assert "### 2." not in text


def test_json(tmp_path: Path) -> None:
    write_report(evaluation(), tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert found["measures"]["loss"] == {
        "label": "loss (nats per token)",
        "higher_is_better": False,
        "num_examples": 2,
        "before": {"value": 3.0, "low": 3.0, "high": 3.0},
        "after": {"value": 1.0, "low": 1.0, "high": 1.0},
        "difference": {"value": -2.0, "low": -2.0, "high": -2.0},
        "verdict": "better",
    }
    assert found["generation"]["before"] == {"seconds": 2.0, "tokens_per_s": 6.0}
    assert found["generation"]["use_mtp"] is True
    assert found["answers"][1] == {
        "source": "faq_1.csv:5",
        "messages": [{"role": "user", "content": "Really?"}],
        "reference": "Yes.",
        "before": {"text": "Yes.", "num_tokens": 3, "finished": True},
        "after": {"text": "Yes.", "num_tokens": 3, "finished": True},
    }
    assert found["lm_eval"] == {}


def test_terminal_table_fits_80_columns() -> None:
    written = StringIO()
    Console(file=written, width=80).print(summary_table(evaluation()))
    loss, match = (line for line in written.getvalue().splitlines() if line.startswith("│"))
    assert [part.strip() for part in loss.strip("│").split("│")] == [
        "loss (nats per token)",
        "3.000",
        "1.000",
        "-2.000 (-2.000 to -2.000)",
        "better",
    ]
    assert "exact match (%)" in match
    alone = StringIO()
    Console(file=alone, width=80).print(summary_table(evaluation(), ["exact_match"]))
    assert "exact match" in alone.getvalue() and "loss" not in alone.getvalue()


def test_one_model_alone(tmp_path: Path) -> None:
    markdown = write_report(evaluation(after=False), tmp_path)
    assert "| loss (nats per token) | 3.000 (3.000 to 3.000) |\n" in markdown.read_text()
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(found["models"]) == ["before"] and "after" not in found["measures"]["loss"]
    written = StringIO()
    Console(file=written, width=100).print(summary_table(evaluation(after=False)))
    assert "3.000 (3.000 to 3.000)" in written.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b *c* `d` [e](f) ~g~ $h$ \\", "a\\_b \\*c\\* \\`d\\` \\[e\\](f) \\~g\\~ \\$h\\$ \\\\"),
        ("<b>&amp; 3 > 2", "&lt;b>&amp;amp; 3 > 2"),
        ("# a\n- b\n > c\n12. d\n3) e\n-4 is 5.5", "\\# a\n\\- b\n \\> c\n12\\. d\n3\\) e\n\\-4 is 5.5"),
        ("5.5 is not 5. 5", "5\\.5 is not 5. 5"),
    ],
)
def test_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert literal(text) == shown


def test_figure_has_values_intervals_and_a_scale_each() -> None:
    figure = draw_comparisons(evaluation().comparisons)
    loss, match = figure.axes
    for axes, values, ends in (
        (loss, [1.0, 3.0], [(1.0, 1.0), (3.0, 3.0)]),
        (match, [100.0, 50.0], [(100.0, 100.0), (0.0, 100.0)]),
    ):
        # From below: after, before.
        bars: Any = axes.containers
        assert [bar.lines[0].get_xdata()[0] for bar in bars] == values
        lines = [bar.lines[2][0].get_segments()[0] for bar in bars]
        assert [(segment[0][0], segment[1][0]) for segment in lines] == ends
    assert loss.get_ylabel() == "loss (nats per token)\nlower is better"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]
    alone = draw_comparisons(evaluation(after=False).comparisons)
    assert [len(axes.containers) for axes in alone.axes] == [1, 1]


def test_tables_and_quotes() -> None:
    assert cell("a|b\n\nc") == "a\\|b<br><br>c"
    assert quote("a\n\nb") == "> a  \n>\n> b  "
    assert table(("", "x"), [("y", "1")]) == "|  | x |\n| --- | ---: |\n| y | 1 |"


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 10.0, 20.0, 30.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    written = StringIO()
    with row_progress(Console(file=written, width=100), "answers", 2000) as advance:
        for number in (400, 600, 1000):
            advance(number)
    # 1,000 of 2,000 in 20 seconds; 10 seconds are too soon for a line, and the last one is the end itself.
    assert written.getvalue() == ("  answers: 1,000 of 2,000, about 20 s left\n  answers: 2,000 in 100 s\n")
