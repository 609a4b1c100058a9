"""`seeklet merge` and `seeklet export-adapter`: an adapter for use without PEFT, in its model or beside it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

AdapterArgument = Annotated[Path, typer.Argument(help="The folder of the adapter.", exists=True, file_okay=False)]
BaseOption = Annotated[
    str | None,
    typer.Option(help="The model the adapter was trained on: a folder or a Hub id. Default: what the adapter says."),
]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a base on the Hub. Default: what the adapter says.")
]


def merge(
    adapter: AdapterArgument,
    out: Annotated[Path, typer.Option(help="Where the merged model goes: a new folder.")],
    base: BaseOption = None,
    revision: RevisionOption = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="What weights are written in; auto takes the base's, bfloat16 for one in fp8."),
    ] = "auto",
    fp8: Annotated[bool, typer.Option("--fp8", help="Write block-fp8 weights (DeepSeek-V3 checkpoints only).")] = False,
    max_shard_gb: Annotated[float, typer.Option(help="Largest file of the weights, in gigabytes.", min=0.001)] = 5.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in --out.")] = False,
) -> None:
    """Merge an adapter into its model and save the whole.

    The result needs neither PEFT nor seeklet: transformers, vLLM, SGLang and llama.cpp load it. A DeepSeek-V3
    checkpoint of any size is merged one tensor at a time; other models are loaded into memory.

        seeklet merge runs/sft_smollm2-135m_support_cpu/adapter --out merged/
    """
    # Imported here, so that --help and a mistyped option answer at once.
    import torch

    from .merge import merge_adapter

    chosen = None if dtype == "auto" else getattr(torch, dtype)
    merge_adapter(adapter, out, base, chosen, fp8, overwrite, revision, max_shard_gb)
    typer.echo(f"The merged model is in {out}")


def export_adapter(
    adapter: AdapterArgument,
    out: Annotated[Path, typer.Option(help="Where the adapter goes: a new folder.")],
    base: BaseOption = None,
    revision: RevisionOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that is in --out.")] = False,
) -> None:
    """Write an adapter as vLLM and SGLang take it: a pair of factors for every projection of every expert.

    The numbers are exactly those of the adapter. What no engine can add to a model it serves (a router that was
    trained, layers saved whole) is refused: merge such an adapter.

        seeklet export-adapter runs/sft_deepseek-v3_chat_8xh200/adapter --out exported/
    """
    # Imported here, so that --help and a mistyped option answer at once.
    from .export import export_per_expert

    export_per_expert(adapter, out, base, overwrite, revision)
    typer.echo(f"The adapter for serving engines is in {out}")
