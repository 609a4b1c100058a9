"""`seeklet chat`: a model or an adapter, in the terminal."""

import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from seeklet.modeling import SeekletError

from .reasoning import END_THINK, THINK, Piece

if TYPE_CHECKING:
    # It imports what loads models, which --help can do without.
    from .chat import Chat, Reply

COMMANDS = "/reset forgets what was said, /system TEXT begins again with a system message, /exit ends the chat"


def chat(
    path: Annotated[
        str,
        typer.Argument(
            help="A model's folder or Hub id, an adapter's folder, or the output folder of seeklet train.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="Answer this and end; - reads it from standard input. The answer alone goes to stdout."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reply, reasoning included.")] = 4096,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=10,
            help="0 takes the likeliest token each time. Default: as the checkpoint says.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the same reply again.", show_default=False)] = None,
    use_mtp: Annotated[
        bool, typer.Option("--use-mtp", help="Draft with the model's multi-token prediction, for speed.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="The model an adapter was trained on. Default: what the adapter says.", show_default=False),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="A template of seeklet's by name, or a .jinja file. Default: the tokenizer's own."),
    ] = None,
    quantization: Annotated[
        Literal["nf4", "fp4", "int8"] | None,
        typer.Option(help="Hold the model's weights in 4 or 8 bits, as model.quantization of a recipe does."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
) -> None:
    """Talk to a model in the terminal. Its reasoning is shown dim, apart from the answer.

    Ctrl-C ends a reply, /exit or Ctrl-D the chat; /reset forgets what was said, /system TEXT sets a system message.

        seeklet chat runs/sft_smollm2-135m_support_cpu/adapter

        seeklet chat Qwen/Qwen2.5-1.5B-Instruct --temperature 0.7 --system 'Answer in one sentence.'

    With --prompt one answer goes to stdout, and the reasoning to stderr:

        seeklet chat merged/ --prompt 'How do I reset my password?' > answer.txt
    """
    question = _read_prompt(prompt) if prompt is not None else None
    # Imported here, so that --help and a mistyped option answer at once.
    import torch
    from transformers.utils import logging

    from .chat import Chat, ChatSettings, load
    from .chat import chat_template as find_template

    if not sys.stderr.isatty():
        # In a log file the bars of loading would be lines and lines.
        logging.disable_progress_bar()
    if seed is not None:
        torch.manual_seed(seed)
    loaded = load(path, base, trust_remote_code, quantization)
    template = find_template(loaded.tokenizer, chat_template)
    talk = Chat(loaded, template, ChatSettings(max_new_tokens, temperature, use_mtp), system)
    if question is not None:
        _answer(talk, question)
    else:
        _converse(talk)


def _read_prompt(prompt: str) -> str:
    if prompt == "-":
        sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue] a TextIOWrapper
        prompt = sys.stdin.read()
    # Bytes of the command line that are no UTF-8.
    prompt = prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
    if not prompt:
        raise typer.BadParameter(
            "is empty; allowed: some text, or - and some text on standard input", param_hint="--prompt"
        )
    return prompt


def _answer(talk: "Chat", question: str) -> None:
    """Print one answer on stdout, and what else there is to say on stderr."""
    aside = Console(stderr=True, highlight=False)
    printer = _Printer(Console(highlight=False), aside)
    reply = talk.reply(question, printer)
    printer.end()
    if reply.ending == "interrupted":
        raise KeyboardInterrupt
    if reply.ending == "limit":
        aside.print(_figures(talk, reply), style="dim")


def _converse(talk: "Chat") -> None:
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(COMMANDS, style="dim")
    for line in _lines():
        if line.startswith("/"):
            command, _, argument = line.partition(" ")
            if command == "/exit":
                return
            _obey(talk, command, argument.strip(), console)
            continue
        printer = _Printer(console, console)
        try:
            reply = talk.reply(line, printer)
        except SeekletError as error:
            console.print(str(error), style="red", markup=False, soft_wrap=True)
            continue
        printer.end()
        console.print(_figures(talk, reply), style="dim", end="\n\n")


def _lines() -> Iterator[str]:
    """Yield what is typed or piped, line by line and without blank ones."""
    interactive = sys.stdin.isatty()
    if interactive:
        # Imported for what it does to input(): keys that move within a line, and to the lines before.
        import readline  # noqa: F401
    else:
        sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue] a TextIOWrapper
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _obey(talk: "Chat", command: str, argument: str, console: Console) -> None:
    if command == "/reset":
        talk.reset(talk.system)
        said = "What was said is forgotten."
    elif command == "/system":
        talk.reset(argument or None)
        said = "The chat begins again" + (" with this system message." if argument else ", without a system message.")
    else:
        said = f"{command} is no command; {COMMANDS}"
    console.print(said, style="dim", markup=False)


def _figures(talk: "Chat", reply: "Reply") -> str:
    speed = f"{reply.num_tokens:,} tokens, {reply.num_tokens / max(reply.seconds, 1e-9):.1f} tokens/s"
    if reply.ending == "limit":
        return f"{speed}, cut off by --max-new-tokens ({talk.settings.max_new_tokens:,}) or the model's context"
    return speed + (", stopped" if reply.ending == "interrupted" else "")


class _Printer:
    """Prints pieces as they come: reasoning dim, or between its tags where nothing can be dim; then the answer."""

    def __init__(self, answers: Console, reasoning: Console):
        self._files: dict[str, IO[str]] = {"answer": answers.file, "reasoning": reasoning.file}
        # None where there are no colours, nor anything of that kind.
        self._colours = reasoning.color_system if reasoning.is_terminal else None
        self._kind = ""

    def __call__(self, piece: Piece) -> None:
        """Print a piece."""
        file = self._files[piece.kind]
        # Written as it is, for programs that read it; but what would move the cursor is shown, not obeyed.
        text = piece.text.replace("\x1b", "␛")
        if piece.kind != self._kind:
            self._end_reasoning()
            self._kind = piece.kind
            if piece.kind == "reasoning" and not self._colours:
                file.write(f"{THINK}\n")
        if piece.kind == "reasoning" and self._colours:
            text = Style(dim=True).render(text, color_system=ColorSystem.STANDARD)
        file.write(text)
        file.flush()

    def end(self) -> None:
        """End the last line."""
        self._end_reasoning()
        if self._kind == "answer":
            self._files["answer"].write("\n")

    def _end_reasoning(self) -> None:
        if self._kind == "reasoning":
            self._files["reasoning"].write("\n\n" if self._colours else f"\n{END_THINK}\n\n")
            self._files["reasoning"].flush()
            self._kind = ""
