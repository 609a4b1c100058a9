"""`.eval_results/`: a run's figure on a benchmark of the Hub, as the Hub shows it on leaderboards."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..data.hub_rows import PREFIX, HubName, parse_hub_name
from ..evaluation.reasoning_report import JSON
from .source import Source

# What a leaderboard shows is one figure.
_FIGURE = "pass@1"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def write_eval_results(folder: Path, source: Source) -> None:
    """Write `.eval_results/` for the one benchmark of the Hub that the run was measured on, if it was.

    The figure is pass@1 in per cent, in huggingface_hub's `EvalResultEntry`: with the benchmark's commit where the
    recipe names one, and in the notes how it was sampled.
    """
    reference, report = _benchmark(source.recipe), _report(source)
    if reference is None or report is None:
        return
    figures, settings = report["figures"], report["settings"]
    revision = reference.revision if reference.revision and _COMMIT.fullmatch(reference.revision) else None
    notes = (
        f"{_FIGURE} of {report['problems']} problems, {report['samples']} attempts each, "
        f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}"
    )
    entry = EvalResultEntry(
        dataset_id=reference.path,
        task_id=reference.config or "default",
        value=round(figures[_FIGURE]["value"], 2),
        dataset_revision=revision,
        notes=notes,
    )
    (folder / ".eval_results").mkdir(exist_ok=True)
    target = folder / ".eval_results" / f"{reference.path.replace('/', '_')}.yaml"
    target.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")


def find_reports(source: Source) -> list[Path]:
    """Return the folders that hold a report of how well the run's model reasons, the likeliest first."""
    if source.run is None:
        return []
    folders = [source.run.path / "evaluation", source.run.path / "after", source.run.path]
    return [folder for folder in folders if (folder / JSON).is_file()]


def _benchmark(recipe: dict[str, Any]) -> HubName | None:
    prompts = recipe.get("prompts")
    named = prompts.get("validation") if isinstance(prompts, dict) else None
    if not isinstance(named, list) or len(named) != 1 or not str(named[0]).startswith(PREFIX):
        return None
    reference = parse_hub_name(str(named[0]))
    return reference if isinstance(reference, HubName) else None


def _report(source: Source) -> dict[str, Any] | None:
    folders = find_reports(source)
    if not folders:
        return None
    report = json.loads((folders[0] / JSON).read_text(encoding="utf-8"))
    return report if _FIGURE in report.get("figures", {}) else None
