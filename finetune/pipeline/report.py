"""The report of a pipeline as Markdown: figures of all stages beside each other, then each with plots and examples."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..atomic_files import write_text
from ..evaluation.markdown import cell, literal, quote, table
from ..evaluation.reasoning_report import PLOT, STAGES_PLOT, show, stage_rows
from ..evaluation.reasoning_results import ProblemResult, ReasoningReport
from ..metrics import read_metrics
from ..published import public_name, without_folders
from ..recipe import ReasoningRecipe, RolloutRecipe
from ..recipe.yaml_text import write_yaml
from ..rollout import report as rollout_report
from .evaluate import read_evaluation
from .manifest import Manifest, StageRecord, plain_recipe
from .settings import BEFORE, REPORT, Pipeline, Stage

# Problems and rows shown of each stage.
NUM_SHOWN = 2
PASS_AT_1 = "pass@1"


def write_report(pipeline: Pipeline, manifest: Manifest, reports: Mapping[str, ReasoningReport]) -> Path:
    """Return the report's file, after writing it whole; it speaks of the stages that are done.

    Raises:
        OSError: it cannot be written.
    """
    file = pipeline.folder / REPORT
    write_text(file, "\n\n".join(_sections(pipeline, manifest, reports)) + "\n")
    return file


def say_stages(pipeline: Pipeline, manifest: Manifest, reports: Mapping[str, ReasoningReport]) -> Table:
    """Return the stages with their times and pass@1 as a table for the terminal."""
    result = Table(title="Stages", title_justify="left")
    for name in ("stage", "kind", "time", "pass@1 (%)"):
        result.add_column(name, justify="right" if name in ("time", "pass@1 (%)") else "left")
    for row in _rows(pipeline, manifest, reports):
        result.add_row(*(row[index] for index in (0, 1, 4, 5)))
    return result


def _sections(pipeline: Pipeline, manifest: Manifest, reports: Mapping[str, ReasoningReport]) -> Iterator[str]:
    done = [stage for stage in pipeline.stages if _is_done(manifest, stage)]
    yield f"# {literal(pipeline.folder.resolve().name)}"
    number = len(pipeline.stages)
    yield f"{len(done)} of {number} stages are done." if len(done) < number else f"All {number} stages are done."
    head = ("stage", "kind", "model", "steps", "time", "pass@1 (%)")
    yield table(head, [[cell(text) for text in row] for row in _rows(pipeline, manifest, reports)])
    if reports:
        columns, rows = stage_rows(list(reports.values()))
        yield table(columns, [[cell(name), *figures] for name, *figures in rows])
        yield f"![Figures by stage]({STAGES_PLOT})"
        yield "Figures with their 95 % intervals over problems; a change is from the stage above."
    if BEFORE in reports:
        yield "## Before the first stage"
        yield from _examples(reports[BEFORE])
    for index, stage in enumerate(pipeline.stages):
        if stage in done:
            yield f"## {index + 1}. {literal(stage.name)} ({stage.kind})"
            yield from _stage_sections(pipeline, stage, manifest.stages[stage.name], reports.get(stage.name))
    yield "## Recipes"
    for stage in pipeline.stages:
        yield f"### {literal(stage.name)}"
        yield f"```yaml\n{write_yaml(without_folders(plain_recipe(stage))).rstrip()}\n```"
    yield from _versions(manifest)


def _rows(
    pipeline: Pipeline, manifest: Manifest, reports: Mapping[str, ReasoningReport]
) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield name, kind, model, steps, time and pass@1 of what is done."""
    if BEFORE in reports:
        yield BEFORE, "–", public_name(pipeline.stages[0].recipe.model.path), "–", "–", _pass_at_1(reports, BEFORE)
    for stage in pipeline.stages:
        if _is_done(manifest, stage):
            seconds = manifest.stages[stage.name].seconds or 0.0
            steps = _steps(stage)
            shown = f"{steps:,}" if steps else "–"
            yield (
                *(stage.name, stage.kind, _model(stage), shown, show_time(seconds)),
                _pass_at_1({**reports, **_own_report(stage)}, stage.name),
            )


def _is_done(manifest: Manifest, stage: Stage) -> bool:
    return stage.name in manifest.stages and manifest.stages[stage.name].is_done


def _pass_at_1(reports: Mapping[str, ReasoningReport], name: str) -> str:
    return show(reports[name].figures[PASS_AT_1], PASS_AT_1) if name in reports else "–"


def _own_report(stage: Stage) -> dict[str, ReasoningReport]:
    """Return the figures of a stage that is an evaluation, by its name; they may be of other problems."""
    report = read_evaluation(stage.folder) if isinstance(stage.recipe, ReasoningRecipe) else None
    return {} if report is None else {stage.name: report}


def _model(stage: Stage, key: str = "model") -> str:
    referred = stage.references.get(f"{key}.path")
    return f"of {referred}" if referred else public_name(getattr(stage.recipe, key).path)


def _steps(stage: Stage) -> int:
    return max((entry["step"] for entry in read_metrics(stage.folder / "metrics.jsonl")), default=0)


def show_time(seconds: float) -> str:
    """Return a duration in words: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _stage_sections(
    pipeline: Pipeline, stage: Stage, record: StageRecord, report: ReasoningReport | None
) -> Iterator[str]:
    facts = [f"model: {literal(_model(stage))}"]
    if getattr(stage.recipe, "teacher", None) is not None:
        facts.append(f"teacher: {literal(_model(stage, 'teacher'))}")
    for key, name in stage.references.items():
        if not key.endswith(".path"):
            facts.append(f"{literal(key)}: what {literal(name)} left")
    if steps := _steps(stage):
        facts.append(f"optimiser steps: {steps:,}")
    facts.append(f"time: {show_time(record.seconds or 0.0)}")
    yield "\n".join(f"- {fact}" for fact in facts)
    if isinstance(stage.recipe, RolloutRecipe):
        yield from _rollout_counts(stage.folder / rollout_report.JSON)
    plots = sorted((stage.folder / "plots").glob("*.png"))
    plots += [file for file in (stage.folder / rollout_report.PLOT,) if file.is_file()]
    plots += [file for file in (stage.folder / PLOT, stage.folder / "evaluation" / PLOT) if file.is_file()]
    for file in plots:
        yield f"![{file.stem}]({file.relative_to(pipeline.folder).as_posix()})"
    if (shown := report or _own_report(stage).get(stage.name)) is not None:
        yield from _examples(shown)
    elif isinstance(stage.recipe, RolloutRecipe):
        yield from _rows_shown(stage.product)


def _rollout_counts(file: Path) -> Iterator[str]:
    """Yield what became of a rollout's attempts."""
    try:
        counts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    rows = [("prompts", counts["num_prompts"]), ("attempts", counts["num_attempts"]), ("right", counts["num_right"])]
    rows += [(f"− {name}", number) for name, number in counts["attempts_left_out"].items() if number]
    yield table(
        ("what", "number"), [(cell(name), f"{number:,}") for name, number in (*rows, ("rows kept", counts["num_kept"]))]
    )


def _examples(report: ReasoningReport) -> Iterator[str]:
    for result in report.results[:NUM_SHOWN]:
        yield _shown(result)


def _shown(result: ProblemResult) -> str:
    verdict = "right" if result.example["is_right"] else "wrong"
    title = f"{literal(result.source)}, first attempt ({result.example['num_tokens']} tokens, {verdict}):"
    return "\n\n".join((title, quote(_asked(result.messages)), quote(result.example["text"]) or "> (nothing)"))


def _rows_shown(dataset: Path) -> Iterator[str]:
    """Yield the first rows of a rollout's data set."""
    with dataset.open(encoding="utf-8") as lines:
        for _, line in zip(range(NUM_SHOWN), lines, strict=False):
            messages = json.loads(line)["messages"]
            said = messages[-1]
            reasoning = said.get("reasoning_content")
            text = f"<think>{reasoning}</think>{said['content']}" if reasoning else said["content"]
            yield "\n\n".join(("A row that was kept:", quote(_asked(messages)), quote(text) or "> (nothing)"))


def _asked(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(str(message["content"]) for message in messages if message["role"] == "user")


def _versions(manifest: Manifest) -> Iterator[str]:
    found = {json.dumps(record.versions): record.versions for record in manifest.stages.values()}
    for versions in found.values():
        names = [record.name for record in manifest.stages.values() if record.versions == versions]
        of = f" of {', '.join(map(literal, names))}" if len(found) > 1 else ""
        yield f"Versions{of}: {', '.join(f'{package} {version}' for package, version in versions.items())}."
