"""Numbers and figure of prepared conversations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seeklet.finetune.data.check import check_data
from seeklet.finetune.data.check_plot import draw_check
from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.data.stats import TokenStats, draw_stats
from seeklet.finetune.data.tokenize_rows import TokenRow


def stats_of(*rows: tuple[int, int, int]) -> TokenStats:
    """Return the statistics of rows of (tokens, trained tokens, turns)."""
    stats = TokenStats()
    for num_tokens, num_trained, num_turns in rows:
        messages = [{"role": "user", "content": ""}] * num_turns
        mask = (np.arange(num_tokens) < num_trained).astype(np.uint8)
        stats.add(TokenRow(Row(messages, None, Source("a.jsonl", 1)), np.zeros(num_tokens, np.int32), mask))
    return stats


def test_numbers() -> None:
    stats = stats_of((10, 5, 2), (20, 5, 2), (30, 20, 4), (40, 10, 6))
    assert stats.num_rows == 4
    assert stats.trained_share == 0.4
    assert stats.as_dict() == {
        "rows": 4,
        "trained_share": 0.4,
        "tokens": {"total": 100, "mean": 25.0, "p5": 10, "p50": 20, "p95": 40, "max": 40},
        "turns": {"total": 14, "mean": 3.5, "p5": 2, "p50": 2, "p95": 6, "max": 6},
        "trained_tokens": {"total": 40, "mean": 10.0, "p5": 5, "p50": 5, "p95": 20, "max": 20},
    }
    assert sorted(stats.trained_percent.bins.elements()) == [25, 25, 50, 66]


def test_numbers_of_nothing() -> None:
    assert stats_of().trained_share == 0.0
    assert stats_of().as_dict()["tokens"] == {"total": 0, "mean": 0.0, "p5": 0, "p50": 0, "p95": 0, "max": 0}


def test_the_figure_shows_shares_of_each_set(tmp_path: Path) -> None:
    train = stats_of(*[(100, 50, 2)] * 30, *[(300, 60, 4)] * 10)
    figure = draw_stats({"training": train, "validation": stats_of((100, 50, 2))}, max_tokens=400)
    axes: list[Any] = figure.axes
    tokens, turns, trained = axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training: 40", "validation: 1"]
    assert tokens.get_title() == "median: training 100, validation 100"
    # Bars 7 wide, as 300 takes at most 48 of them: 100 is in the 14th, 300 in the 42nd.
    [train_bars, validation_bars] = [patch.get_data() for patch in tokens.patches]
    assert {i: value for i, value in enumerate(train_bars.values) if value} == {
        14: pytest.approx(0.75),
        42: pytest.approx(0.25),
    }
    assert {i: value for i, value in enumerate(validation_bars.values) if value} == {14: 1.0}
    # Whole numbers stand in the middle of their bars.
    turn_bars = turns.patches[0].get_data()
    assert [(turn_bars.edges[i], value) for i, value in enumerate(turn_bars.values) if value] == [
        (1.5, pytest.approx(0.75)),
        (3.5, pytest.approx(0.25)),
    ]
    assert trained.get_xlim() == (0, 100)
    # The limit is drawn where rows come near it.
    assert [line.get_xdata()[0] for line in tokens.lines] == [400]
    file = tmp_path / "stats.png"
    figure.savefig(file)
    with Image.open(file) as image:
        assert image.size == (1560, 494)


def test_a_distant_limit_and_empty_sets_are_not_drawn() -> None:
    figure = draw_stats({"training": stats_of((100, 50, 2)), "validation": stats_of()}, max_tokens=2048)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training: 1"]
    assert list(figure.axes[0].lines) == []
    assert draw_stats({"training": stats_of()}, max_tokens=2048).legends[0].get_texts() == []


@pytest.mark.parametrize("rows", [[(1, 1, 1)], [(2, 1, 2)] * 3, [(3, 1, 2), (4, 1, 3)], [(300, 9, 2)], []])
def test_whole_numbers_have_whole_ticks(rows: list[tuple[int, int, int]]) -> None:
    tokens, turns, _ = draw_stats({"training": stats_of(*rows)}, max_tokens=2048).axes
    for axes in (tokens, turns):
        ticks = axes.xaxis.get_major_locator()()
        assert len(ticks) and all(tick == round(tick) for tick in ticks), ticks


@pytest.mark.parametrize("texts", [["Hi"], ["Hi", "Ho", "Hello"], ["x" * 40], ["a" * 9, "b" * 900]])
def test_whole_numbers_have_whole_ticks_without_a_tokenizer(tmp_path: Path, texts: list[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(f'{{"question": "{text}", "answer": "{text}"}}' for text in texts))
    figure = draw_check(check_data(DataSettings((str(file),))))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks = axis.get_major_locator()()
            assert len(ticks) and all(tick == round(tick) for tick in ticks), ticks
