"""`seeklet plan`: what a recipe takes on a cluster, before a GPU is rented."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..train_command import OverridesArgument

PlanRecipe = Annotated[
    Path | None, typer.Argument(help="A recipe of a training stage: one YAML file.", show_default=False)
]


def plan(
    context: typer.Context,
    recipe: PlanRecipe = None,
    overrides: OverridesArgument = None,
    gpu: Annotated[
        str, typer.Option(help="Kind of GPU: a100, b200, h100, h20, h200, h800, l4, l40s, rtx4090.")
    ] = "h200",
    num_gpus: Annotated[int, typer.Option(help="GPUs in all.")] = 1,
    nodes: Annotated[
        int | None, typer.Option(help="Nodes they are in; by default of 8 each.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="single, layers (model.device_map: auto), fsdp or ddp; by default as the recipe is.",
            show_default=False,
        ),
    ] = None,
    expert_parallel: Annotated[
        int | None,
        typer.Option(
            help="GPUs that share one set of experts; by default trainer.expert_parallel.", show_default=False
        ),
    ] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(help="Share of the bf16 peak that is reached; 0.40 if not given.", show_default=False),
    ] = None,
    price: Annotated[float | None, typer.Option(help="USD per GPU and hour.", show_default=False)] = None,
    network: Annotated[
        float | None, typer.Option(help="GB/s to other nodes, one direction, per GPU.", show_default=False)
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Tokens of the whole run, such as 2e9.", show_default=False)
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the efficiency here first, on a short run; on a CPU too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the memory, as PNG.", show_default=False)] = None,
    study: Annotated[
        bool, typer.Option("--study", help="Instead of a recipe: the what-if study of all sizes, into --out.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/plan_study"),
) -> None:
    """Say whether a recipe fits on a cluster, how long it takes, what it costs, and what to change.

    No weights are read: the model's config is enough, and those of DeepSeek-V3 and R1, Moonlight, Kimi-K2, Llama 3 and
    Qwen2.5 are known without a network. Parameters are counted, activations traced; what is assumed is printed.

        seeklet plan recipes/sft_deepseek-v3_chat_8xh200.yaml --gpu h200 --num-gpus 8

        seeklet plan recipes/distill_qwen2.5-7b_r1-traces_8xh200.yaml --num-gpus 8 --tokens 4e9 --plot memory.png

        seeklet plan recipes/sft_deepseek-v3_chat_2x8xh200.yaml --num-gpus 16 --json

        seeklet plan --study --out runs/plan_study
    """
    from rich.console import Console

    from ..errors import RecipeError

    console = Console(highlight=False)
    talk = Console(stderr=True, highlight=False)
    _check_study(study, recipe, context)
    if study:
        from .study import write_study

        write_study(out, talk)
        console.print(f"{out / 'README.md'}")
        return
    if recipe is None:
        raise RecipeError("a recipe is missing: seeklet plan RECIPE --gpu h200 --num-gpus 8; or ask for --study")
    _check_numbers(efficiency, price, network, tokens)
    if calibrate and efficiency is not None:
        raise RecipeError("--calibrate measures what --efficiency gives; leave one of the two out")
    from .cluster import make_cluster
    from .fit import largest_micro_batch, largest_sequence, rank_changes
    from .plan import make_plan
    from .plot import draw_memory
    from .report import as_json as to_json
    from .report import show_plan
    from .request import LAYOUTS, read_request
    from .speed import EFFICIENCY

    if layout is not None and layout not in LAYOUTS:
        raise RecipeError(f"--layout is {layout}; allowed: {', '.join(LAYOUTS)}")
    cluster = make_cluster(gpu, num_gpus, nodes, price_per_hour=price, network_gb_per_s=network)
    request = read_request(recipe, overrides or (), cluster, layout, expert_parallel)  # pyright: ignore[reportArgumentType]
    with talk.status("planning") as status:

        def say(what: str) -> None:
            status.update(f"planning: {what}")

        calibration = None
        if calibrate:
            from .calibrate import measure_efficiency

            say("measuring a short run here")
            calibration = measure_efficiency()
        found = make_plan(request, cluster, efficiency or EFFICIENCY, tokens, calibration=calibration, say=say)
        model = request.build()
        say("what is the largest that fits")
        largest = largest_micro_batch(found, model), largest_sequence(found, model)
        changes = rank_changes(found, say)
    if plot is not None:
        draw_memory(found, changes, plot)
    if as_json:
        print(json.dumps(to_json(found, largest, changes), indent=2))
    else:
        show_plan(found, largest, changes, console)
        if plot is not None:
            console.print(f"drawn: {plot}")


def _check_study(study: bool, recipe: Path | None, context: typer.Context) -> None:
    """Refuse what the study, or a plan, would not look at."""
    from ..errors import RecipeError

    if study and recipe is not None:
        raise RecipeError("--study plans known models, and takes no recipe; leave one of the two out")
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    without = [name for name in given if (name not in ("study", "out") if study else name == "out")]
    if without:
        option = f"--{without[0].removeprefix('as_').replace('_', '-')}"
        what = "has no effect on --study; allowed with it: --out" if study else "is the folder of --study; give both"
        raise RecipeError(f"{option} {what}")


def _check_numbers(efficiency: float | None, price: float | None, network: float | None, tokens: float | None) -> None:
    from ..errors import RecipeError

    if efficiency is not None and not 0 < efficiency <= 1:
        raise RecipeError(f"--efficiency is {efficiency:g}; allowed: a share above 0 and at most 1")
    for name, value in (("price", price), ("network", network), ("tokens", tokens)):
        if value is not None and not value > 0:
            raise RecipeError(f"--{name} is {value:g}; allowed: a number above 0")
