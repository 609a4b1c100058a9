"""`seeklet run`: the stages of a pipeline, one after the other."""

from pathlib import Path
from typing import Annotated

import typer

from ..train_command import OverridesArgument

PipelineArgument = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="A pipeline: one YAML file.", show_default=False)
]


def run(
    pipeline: PipelineArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show each stage's recipe, what it reads and leaves, and what it takes."),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip stages that are done, and go on with the one that was interrupted."),
    ] = False,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="Remove what this stage and those after it left, and run from it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Carry out a pipeline: stages such as cold start, GRPO, rejection sampling and distillation from one file.

    Each stage is a recipe, and names what an earlier one left as "{name}". All of them are checked before the first
    one runs. A manifest and a report with figures, plots and example traces are in the pipeline's `output.dir`.

        seeklet run recipes/pipeline_r1_qwen2.5-7b_math_8xh200.yaml --dry-run

        seeklet run recipes/pipeline_r1_qwen2.5-7b_math_8xh200.yaml stages.grpo.trainer.max_steps=100

    Stopped with Ctrl-C or killed, it goes on at the stage and the step where it was:

        seeklet run recipes/pipeline_r1_qwen2.5-7b_math_8xh200.yaml --resume

    One stage and all that follow from it, done again:

        seeklet run recipes/pipeline_r1_qwen2.5-7b_math_8xh200.yaml --from rollout
    """
    if dry_run:
        if resume or from_stage is not None:
            raise typer.BadParameter("leave out --resume and --from: a dry run changes nothing")
        from rich.console import Console

        from .dry_run import show_pipeline
        from .load import load_pipeline

        show_pipeline(load_pipeline(pipeline, overrides or ()), Console(highlight=False))
        return
    from .run import run_pipeline

    run_pipeline(pipeline, overrides or (), resume=resume, from_stage=from_stage)
