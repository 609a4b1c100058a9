"""`seeklet export`: a model as GGUF, for llama.cpp and everything built on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .export import Outcome

# Findings: a layer that is missing is one for each of its tensors.
_MOST_SHOWN = 30


def export(
    folder: Annotated[
        Path, typer.Argument(help="A model, or a run (runs/NAME) with a merged one.", show_default=False)
    ],
    gguf: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            show_default=False,
            help="What weights become: f32, f16, bf16, q8_0 (default); q6_k, q5_k_m, q4_k_m … with llama-cpp-python "
            "installed. Again for another file.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the files go. Default: FOLDER-gguf.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the files are called. Default: after the folder.", show_default=False)
    ] = None,
    ollama: Annotated[
        bool, typer.Option("--ollama", help="A Modelfile, too: chat template, stop tokens, sampling, licence.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="System message in the Modelfile. Default: the chat template's own.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend, in a copy.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and say what would be written.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that no export wrote, or that were edited since.")
    ] = False,
    converter: Annotated[
        Path | None,
        typer.Option(
            help="A checkout of llama.cpp. Default: the converter in llama-cpp-python's source package, fetched once "
            "with pip.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model as GGUF, for llama.cpp, Ollama, LM Studio and others.

    Everything is checked before anything is written: whether llama.cpp knows the architecture and the tokenizer,
    whether the config says what it reads, whether there is room. An adapter is merged first: `seeklet merge`.

        seeklet export runs/sft_smollm2-135m_support_cpu --gguf q8_0 --ollama

        ollama create support -f runs/sft_smollm2-135m_support_cpu/merged-gguf/Modelfile

    q8_0 is half of bf16 and hardly differs; q4_k_m is a quarter and usually good enough; f32, f16 and bf16 are for
    further work on the file. Without Ollama: `llama-server -m FILE --jinja`.
    """
    # Imported here, so that --help and a mistyped option answer at once.
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from ..publish.findings import errors_of
    from .export import ExportOptions
    from .export import export as carry_out

    disable_progress_bar()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    options = ExportOptions(gguf or ("q8_0",), out, name, ollama, system, fix, overwrite, converter)
    outcome = carry_out(folder, options, console, dry_run=dry_run, show=lambda found: _show(found, dry_run, console))
    if errors_of(outcome.findings):
        raise typer.Exit(2)
    for file in outcome.written:
        console.print(f"Written: {file} ({file.stat().st_size / 1e6:,.1f} MB)")
    if ollama and outcome.written:
        console.print(f"Next: ollama create NAME -f {outcome.written[-1]}")


def _show(outcome: "Outcome", dry_run: bool, console: "Console") -> None:
    from ..publish.findings import errors_of

    for finding in outcome.mended:
        console.print(f"mended: {finding.file}: {finding.where}: {finding.wrong}")
    for finding in outcome.findings[:_MOST_SHOWN]:
        console.print(str(finding))
    if len(outcome.findings) > _MOST_SHOWN:
        console.print(f"… and {len(outcome.findings) - _MOST_SHOWN} more")
    errors = len(errors_of(outcome.findings))
    if errors:
        console.print(f"Not fit to export: {errors} error{'s' if errors > 1 else ''}; nothing was written.")
    elif dry_run:
        for file, size in outcome.sizes.items():
            console.print(f"Would be written: {file}, about {size / 1e6:,.0f} MB")
