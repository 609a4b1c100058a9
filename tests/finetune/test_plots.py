"""The figures show what was logged: which there are, what their curves go through, and what is read from an entry."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

from seeklet.finetune.figures import smooth
from seeklet.finetune.metrics import Entry
from seeklet.finetune.plots import draw_expert_load, draw_loss, draw_plots, load_layers, series, train_loss


def make_entries(steps: int, layers: int = 0, every: int = 1, seed: int = 0) -> list[Entry]:
    """Return the entries of a run that goes well."""
    random = np.random.default_rng(seed)
    entries: list[Entry] = []
    for step in range(every, steps + 1, every):
        share = step / steps
        loss = 0.8 + 1.9 * math.exp(-4 * share) + random.normal(0, 0.06)
        entry: Entry = {
            "step": step,
            "loss": loss + 0.1 * (loss + 0.7) if layers else loss,
            "learning_rate": 2e-4 * min(1, step / (0.1 * steps)) * (1 - 0.9 * share),
            "grad_norm": 0.4 + 1.2 * math.exp(-6 * share) + abs(random.normal(0, 0.1)),
            "tokens_per_s": 5200 + random.normal(0, 300),
        }
        if layers:
            load = {
                f"expert_load_max_over_mean/layer_{n}": 1 + 2 * math.exp(-3 * share) / n for n in range(1, layers + 1)
            }
            entry |= {"lm_loss": loss, "mtp_loss": loss + 0.7 + random.normal(0, 0.05)} | load
        entries.append(entry)
        if step % (steps // 8) == 0:
            entries.append({"step": step, "eval_loss": 1.0 + 1.7 * math.exp(-4 * share) + 0.25 * share**3})
    return [*entries, {"step": steps, "train_runtime": 12.0}]


def lines_of(figure: Any) -> dict[str, Any]:
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].get_lines()}


def test_there_is_a_figure_for_what_was_logged(tmp_path: Path) -> None:
    assert draw_plots([], tmp_path) == {} and draw_plots([{"step": 3, "eval_loss": 1.0}], tmp_path) == {}
    dense = draw_plots(make_entries(40), tmp_path / "dense")
    assert list(dense) == ["loss", "learning_rate", "tokens_per_s"]
    mixture = draw_plots(make_entries(40, layers=3), tmp_path / "mixture")
    assert list(mixture) == ["loss", "learning_rate", "mtp_loss", "expert_load", "tokens_per_s"]
    for file in mixture.values():
        height, width, _ = imread(file).shape
        assert (width, height) == (975, 546)


def test_the_loss_is_that_of_the_next_token_and_of_what_was_held_out() -> None:
    entries = make_entries(16, layers=2)
    lines = lines_of(draw_loss(entries))
    expected = [(entry["step"], entry["lm_loss"]) for entry in entries if "lm_loss" in entry]
    np.testing.assert_allclose(lines["training"], expected)
    expected = [(entry["step"], entry["eval_loss"]) for entry in entries if "eval_loss" in entry]
    np.testing.assert_allclose(lines["held-out"], expected)
    [note] = [text.get_text() for text in draw_loss(entries).axes[0].texts]
    assert note == f"best {min(loss for _, loss in expected):.3f}"


def test_a_loss_that_was_no_number_is_left_out() -> None:
    entries = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    assert series([train_loss(entry) for entry in entries]) == ([1, 3], [2.0, 1.0])


def test_many_layers_are_a_map() -> None:
    assert load_layers(make_entries(16, layers=12)) == list(range(1, 13))
    curves, mesh = (draw_expert_load(make_entries(16, layers=layers)) for layers in (3, 58))
    np.testing.assert_allclose(lines_of(curves)["layer 2"][0], (1, 1 + math.exp(-3 / 16)))
    collections: Any = mesh.axes[0].collections
    [values] = [collection.get_array() for collection in collections]
    assert values.shape == (58, 16)
    np.testing.assert_allclose(values[1, 0], 1 + math.exp(-3 / 16))


def test_smooth_by_hand() -> None:
    np.testing.assert_allclose(smooth([1.0, 3.0, 5.0, 1.0], 2), [1.0, 2.0, 4.0, 3.0])
    np.testing.assert_allclose(smooth([1.0, 3.0], 20), [1.0, 2.0])
