"""A pipeline carried out: what is done is skipped, what was interrupted goes on, and all is written down."""

import gc
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from ..atomic_files import write_text
from ..card import versions
from ..carry_out import carry_out
from ..errors import RecipeError, TrainingError
from ..evaluation.reasoning_report import write_stages
from ..evaluation.reasoning_results import ReasoningReport
from ..recipe import ReasoningRecipe, RolloutRecipe, as_yaml
from ..rollout.report import MARKDOWN as ROLLOUT_REPORT
from ..run_folder import RunFolder, locked
from .checks import check_stages
from .evaluate import evaluate_model, evaluation_key, first_model_sha256, read_evaluation
from .hashes import hash_product, hash_together
from .inputs import hash_inputs
from .launch import run_launched
from .load import load_pipeline
from .manifest import Manifest, StageRecord, hash_recipe, plain_recipe
from .report import say_stages, write_report
from .settings import BEFORE, REPORT, Pipeline, Stage
from .state import find_begin


@dataclass(frozen=True)
class StageResult:
    """What became of one stage.

    Attributes:
        name: the stage's.
        kind: sft, grpo, rollout and so on.
        product: what it left: a model, an adapter, a data set, or the figures of an evaluation.
        seconds: of its work; of the last part, where it was interrupted.
        skipped: whether it was done already.
        evaluation: the figures of what it trained, where the pipeline evaluates.
    """

    name: str
    kind: str
    product: Path
    seconds: float
    skipped: bool
    evaluation: ReasoningReport | None


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline has left: its folder, its report, its stages in order, and figures of the model before them."""

    folder: Path
    report: Path
    before: ReasoningReport | None
    stages: tuple[StageResult, ...]


def run_pipeline(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    from_stage: str | None = None,
    console: Console | None = None,
) -> PipelineResult:
    """Return what the pipeline of a YAML file has left, when all its stages are done.

    With `resume` stages that are done are skipped, and one that was interrupted goes on from its last checkpoint; with
    `from_stage` what that stage and those after it left is removed first.

    Raises:
        RecipeError: the pipeline cannot be carried out, its folder is taken, or what is there does not agree with it.
        DataError: the data of a stage cannot be used.
        TrainingError: another process works there, or a stage had to stop.
        SeekletError: as the stages.
        KeyboardInterrupt: after saying where the stage can go on from.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(
            f"seeklet run was started in {processes} processes and is one; launch: in the pipeline starts the others "
            "for each stage, such as launch: [accelerate, launch]"
        )
    pipeline = load_pipeline(path, overrides)
    console = console or Console(highlight=False)
    check_stages(pipeline)
    begin = find_begin(pipeline, resume, from_stage)
    with locked(RunFolder(pipeline.folder)):
        return _Running(pipeline, begin(), console).run()


class _Running:
    """One call's way through the stages."""

    def __init__(self, pipeline: Pipeline, manifest: Manifest, console: Console):
        self.pipeline, self.manifest, self.console = pipeline, manifest, console
        self.folder = pipeline.folder
        self.reports: dict[str, ReasoningReport] = {}
        self.results: list[StageResult] = []

    def run(self) -> PipelineResult:
        self.manifest.write(self.folder)
        try:
            if self.pipeline.evaluation is not None:
                self._evaluate(None)
            for index, stage in enumerate(self.pipeline.stages):
                self._run_stage(index, stage)
        except KeyboardInterrupt:
            done = len(self.results)
            self._say(f"Stopped: {done} of {len(self.pipeline.stages)} stages are done; seeklet run --resume goes on")
            raise
        self.console.print(say_stages(self.pipeline, self.manifest, self.reports))
        report = self.folder / REPORT
        self._say(f"Report: {report}")
        return PipelineResult(self.folder, report, self.reports.get(BEFORE), tuple(self.results))

    def _run_stage(self, index: int, stage: Stage) -> None:
        number = len(self.pipeline.stages)
        self.console.rule(f"{index + 1}/{number} {stage.name} ({stage.kind})")
        record = self.manifest.stages.get(stage.name)
        skipped = record is not None and record.is_done
        if skipped:
            self._say("done already")
        else:
            record = self._carry_out(stage)
        assert record is not None and record.seconds is not None
        if self.pipeline.evaluation is not None and stage.trains:
            self._evaluate(stage)
        evaluation = self.reports.get(stage.name)
        self.results.append(StageResult(stage.name, stage.kind, stage.product, record.seconds, skipped, evaluation))
        if not skipped or index + 1 == number:
            self._write_report()

    def _carry_out(self, stage: Stage) -> StageRecord:
        """Return the record of a stage when it is done."""
        record, resume = self._begin(stage)
        file = self.folder / f"{stage.name}.yaml"
        write_text(file, as_yaml(stage.recipe))
        start = time.monotonic()
        # An evaluation lays its model out over all GPUs by itself.
        if stage.launch and not isinstance(stage.recipe, ReasoningRecipe):
            run_launched(stage, file, resume)
        else:
            carry_out(stage.recipe, resume=resume, console=self.console)
        _let_go()
        if isinstance(stage.recipe, RolloutRecipe) and not stage.product.stat().st_size:
            raise TrainingError(
                f"stage {stage.name} kept no row, so there is nothing to go on with; {stage.folder / ROLLOUT_REPORT} "
                "says why. With other filters in its sampling section, --resume takes the same attempts"
            )
        record.seconds = time.monotonic() - start
        record.files = hash_product(stage.product)
        record.product = stage.product.relative_to(self.folder).as_posix()
        record.product_sha256 = hash_together(record.files)
        record.ended = _now()
        self.manifest.write(self.folder)
        return record

    def _begin(self, stage: Stage) -> tuple[StageRecord, bool]:
        """Return the record of a stage that is not done, and whether it goes on."""
        before = self.manifest.stages.get(stage.name)
        recipe = plain_recipe(stage)
        products = {name: each.product_sha256 for name, each in self.manifest.stages.items() if each.product_sha256}
        inputs = hash_inputs(stage, products)
        begun = before.begun if before else _now()
        # Also of one that goes on: what may change then may have.
        record = StageRecord(stage.name, stage.kind, recipe, hash_recipe(recipe), inputs, versions(), begun)
        self.manifest.stages[stage.name] = record
        self.manifest.write(self.folder)
        if before is None:
            return record, False
        if RunFolder(stage.folder).recipe.is_file():
            return record, True
        # It was interrupted before it had anything to go on with.
        if stage.folder.exists():
            shutil.rmtree(stage.folder)
        return record, False

    def _evaluate(self, stage: Stage | None) -> None:
        """Note the figures of what a stage trained, or of the first model; those that are there are not had again."""
        name = stage.name if stage else BEFORE
        folder = stage.folder / "evaluation" if stage else self.folder / BEFORE
        product = self.manifest.stages[stage.name].product_sha256 if stage else first_model_sha256(self.pipeline)
        assert product is not None
        key = evaluation_key(self.pipeline, product)
        report = read_evaluation(folder) if self.manifest.evaluations.get(name) == key else None
        if report is None:
            if stage is None:
                self.console.rule("before the first stage (evaluation)")
            report = evaluate_model(self.pipeline, stage, name, folder, self.console)
            _let_go()
            self.manifest.evaluations[name] = key
            self.manifest.write(self.folder)
        self.reports[name] = report

    def _write_report(self) -> None:
        if self.reports:
            write_stages(list(self.reports.values()), self.folder)
        write_report(self.pipeline, self.manifest, self.reports)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def _let_go() -> None:
    """Give back the memory of a model that nobody holds any more: the next one needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
