"""The command `seeklet`: imports the sub-command that is asked for, and says in a line what went wrong.

It is a folder so that it can be installed under a second name, `seeklet_cli`, which is what the command runs: importing
anything below `seeklet` registers the models, which takes seconds, and `seeklet --help` should not. For the same reason
nothing here is imported from the rest of seeklet before it is needed.
"""

import importlib
import io
import os
import sys
from importlib import metadata
from typing import Annotated, NamedTuple, NoReturn

from .quiet_bitsandbytes import keep_bitsandbytes_quiet

INSTALL_HINT = "pip install 'seeklet[train]'"

try:
    import typer
except ModuleNotFoundError:
    print(f"seeklet: its commands need packages that are not installed: {INSTALL_HINT}", file=sys.stderr)
    raise SystemExit(2) from None

# What the extra `train` brings: without it the model classes work, and the commands say what is missing.
EXTRA_MODULES = {
    "accelerate",
    "datasets",
    "detect_secrets",
    "matplotlib",
    "orjson",
    "peft",
    "phonenumbers",
    "psutil",
    "pyarrow",
    "rich",
    "rouge_score",
    "sacrebleu",
    "stdnum",
    "trl",
}
USER_MISTAKE = 2


class Command(NamedTuple):
    """Where a sub-command is within `seeklet.finetune`, and what `seeklet --help` says of it."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "data": Command("data.command", "app", "Look at training data before a model does: seeklet data check FILE."),
    "train": Command("train_command", "train", "Train a model as a recipe says; --dry-run says what would happen."),
    "run": Command(
        "pipeline.command", "run", "Carry out a pipeline of stages; --resume goes on at the step it was at."
    ),
    "rollout": Command("rollout_command", "rollout", "Sample answers, and keep the right ones as a data set."),
    "evaluate": Command("evaluate_command", "evaluate", "Measure the model of a recipe before and after training."),
    "chat": Command("chat_command", "chat", "Talk to a model or an adapter in the terminal; its reasoning is visible."),
    "merge": Command("lora.command", "merge", "Merge an adapter into its model and save the whole."),
    "export-adapter": Command("lora.command", "export_adapter", "Write an adapter as vLLM and SGLang take it."),
    "export": Command("export.command", "export", "Write a model as GGUF, for llama.cpp and Ollama."),
    "plan": Command(
        "plan.command", "plan", "Say whether a recipe fits on a cluster, how long it takes and what it costs."
    ),
    "publish": Command("publish.command", "publish", "Check a model, an adapter or a run, and send it to the Hub."),
    "verify": Command("publish.verify_command", "verify", "Compare what is on the Hub with the folder it came from."),
}

HELP = """
Fine-tune DeepSeek-V3-architecture and other open models on your own data.

A first run, from a file of questions and answers to a model that answers them:

    seeklet data check support.jsonl

    seeklet train recipes/sft_smollm2-135m_support_cpu.yaml data.train=support.jsonl --dry-run

    seeklet train recipes/sft_smollm2-135m_support_cpu.yaml data.train=support.jsonl

    seeklet evaluate recipes/sft_smollm2-135m_support_cpu.yaml data.train=support.jsonl

    seeklet chat runs/sft_smollm2-135m_support_cpu/adapter

On several GPUs: accelerate launch -m seeklet.finetune train RECIPE. Each command has its own --help.
"""


def build_app(arguments: list[str]) -> typer.Typer:
    """Return the command line for these arguments: only what they ask for is imported."""
    app = typer.Typer(
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_take_version)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, command in COMMANDS.items():
        if name != asked:
            app.command(name, help=command.summary)(_stand_in)
            continue
        found = getattr(importlib.import_module(f"seeklet.finetune.{command.module}"), command.attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, help=command.summary)
        else:
            app.command(name)(found)
    return app


def main() -> NoReturn:
    """Run the command line and exit: 0 when it worked, 2 on a user's mistake, 130 on Ctrl-C."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows ASCII only shows other characters as escapes, which beats a traceback.
            stream.reconfigure(errors="backslashreplace")
    keep_bitsandbytes_quiet()
    try:
        build_app(arguments)(args=arguments, prog_name="seeklet")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_MODULES:
            raise
        _end(f"seeklet: this needs the package {package}, which is not installed: {INSTALL_HINT}")
    except OSError as error:
        # A file that cannot be written, a full disk: the system's own words and the file are what a user can act on.
        _end(f"seeklet: {error.filename or 'the system said'}: {error.strerror or error}")
    except Exception as error:
        # Imported here: what raises it has imported seeklet's models, which take seconds that --help can do without.
        from seeklet.modeling import SeekletError

        if not isinstance(error, SeekletError):
            raise
        _end(str(error))
    raise SystemExit(0)


def is_first_process() -> bool:
    """Return whether this process is the one that speaks: of those that accelerate launch started, the first."""
    return os.environ.get("RANK", "0") == "0"


def _end(message: str) -> NoReturn:
    if is_first_process():
        print(message, file=sys.stderr)
    raise SystemExit(USER_MISTAKE)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"seeklet {metadata.version('seeklet')}")
        raise typer.Exit


def _take_version(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Declare the option; what it does is its callback's."""


def _stand_in() -> None:
    """Take the place of a command that is not asked for."""
    raise AssertionError("a command that was not imported was run")
