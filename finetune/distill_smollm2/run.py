"""The example, from the demo's traces to a student that reasons: a pipeline of one stage, carried out."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from ..cpu_dtype import is_fast_in_bf16
from ..demo.tokenizer import build_tokenizer
from ..distill.vocabulary import describe_split_tags
from ..errors import RecipeError
from ..evaluation.models import load_tokenizer
from ..metrics import read_metrics
from ..pipeline import Pipeline, load_pipeline, run_pipeline
from ..pipeline.settings import MANIFEST
from ..pipeline.state import find_begin
from ..published import without_folders
from ..recipe import as_yaml
from ..smollm2 import MODEL_FOLDER, unpack_model
from .findings import Findings, Trace, share_last_number_right
from .report import write_report
from .traces import find_traces, read_traces, teacher_pass_at_1, write_problems

PIPELINE = Path(__file__).with_name("pipeline.yaml")
# Its only stage; and the folder of the pipeline, within the example's.
STUDENT, RUN = "student", "run"
PROBLEMS = "problems.jsonl"


def run_distillation(demo: Path, out: Path, num_problems: int, overrides: Sequence[str], console: Console) -> Findings:
    """Return what the example found, carried out in the folder `out`; its report is written there.

    An interrupted run goes on, and what is done is not done again; where traces, problems or `overrides`, which change
    the pipeline as `KEY=VALUE`, are others than before, the student learns anew.

    Raises:
        NoDemoError: the demo's folder holds no traces.
        MissingPackageError: the student's package is not installed.
        RecipeError: an override is wrong, or the folder holds something else.
        DataError: the traces or problems cannot be used.
        TrainingError: another process works there, or training had to stop.
        OSError: something cannot be written.
    """
    traces = find_traces(demo)
    model, problems = out / MODEL_FOLDER, out / PROBLEMS
    own = {
        "output.dir": out / RUN,
        "evaluation.prompts.train": problems,
        f"stages.{STUDENT}.model.path": model,
        f"stages.{STUDENT}.data.train": traces,
        f"stages.{STUDENT}.trainer.bf16": str(is_fast_in_bf16()).lower(),
    }
    if unpack_model(model):
        console.print(f"SmolLM2-135M-Instruct is unpacked: {model}", markup=False, soft_wrap=True)
    write_problems(demo, num_problems, problems)
    everything = [*(f"{key}={value}" for key, value in own.items()), *overrides]
    pipeline = load_pipeline(PIPELINE, everything)
    student = pipeline.stage(STUDENT)
    tokenizer = load_tokenizer(student.recipe.model)
    # As reports are to call it.
    tokenizer.name_or_path = MODEL_FOLDER
    if split := describe_split_tags(tokenizer):
        console.print(f"Note: {split}", markup=False, soft_wrap=True)
    goes_on, from_stage = _choose_begin(pipeline, console)
    result = run_pipeline(PIPELINE, everything, resume=goes_on, from_stage=from_stage, console=console)
    answers = _read_answers(problems)
    [trained] = result.stages
    before, after = result.before, trained.evaluation
    assert before is not None and after is not None, "the pipeline evaluates"
    rows = list(read_traces(traces))
    held_out = {str(each.messages[-1]["content"]) for each in before.results}
    findings = Findings(
        before=before,
        after=after,
        last_number_right=(share_last_number_right(before, answers), share_last_number_right(after, answers)),
        teacher=teacher_pass_at_1(demo, after),
        trace=_cut(*rows[0], tokenizer),
        split_tags=split,
        num_traces=len(rows),
        epochs=max(each["epoch"] for each in read_metrics(student.folder / "metrics.jsonl")),
        shared_problems=sorted(held_out & {asked for asked, _ in rows}),
        recipe=without_folders(yaml.safe_load(as_yaml(student.recipe))),
        seconds=trained.seconds,
    )
    write_report(findings, out)
    return findings


def _choose_begin(pipeline: Pipeline, console: Console) -> tuple[bool, str | None]:
    """Return whether an earlier run goes on, and else the stage at which it is begun again, if there was one."""
    if not (pipeline.folder / MANIFEST).is_file():
        return False, None
    try:
        find_begin(pipeline, True, None)()
    except RecipeError as error:
        # What follows is advice on `seeklet run`.
        why = str(error).partition(";")[0]
        console.print(f"The student learns anew: {why}", markup=False, soft_wrap=True)
        return False, STUDENT
    console.print("An earlier run goes on.")
    return True, None


def _read_answers(problems: Path) -> dict[str, str]:
    """Return the answers of the problems by what is asked; the pipeline has checked their file."""
    rows = map(json.loads, problems.read_text(encoding="utf-8").splitlines())
    return {str(row["prompt"]): str(row["answer"]) for row in rows}


def _cut(asked: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Trace:
    """Return a trace, and how the teacher's tokenizer and the student's cut it."""
    teacher, student = (
        [str(each.decode([token])) for token in each.encode(text, add_special_tokens=False)]
        for each in (build_tokenizer(), tokenizer)
    )
    return Trace(asked, text, teacher, student)
