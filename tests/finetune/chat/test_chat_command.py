"""`seeklet chat` as a user types it: piped, in a terminal, and mistaken."""

import io
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seeklet.finetune import cli
from tests.finetune.chat.taught import ANSWER, REASONING
from tests.finetune.data.chats import shipped

RunHere = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Return a function that runs `seeklet chat` in this process, and returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seeklet", "chat", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode("utf-8", "surrogateescape"))))
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert isinstance(exit.value.code, int)
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


def test_one_answer_goes_to_stdout_and_the_reasoning_elsewhere(taught: Path, run_here: RunHere) -> None:
    code, output, errors = run_here(taught, "--prompt", "2 + 2?")
    assert (code, output) == (0, f"{ANSWER}\n")
    assert errors == f"<think>\n{REASONING}\n</think>\n\n"


def test_the_question_can_come_through_a_pipe(taught: Path, run_here: RunHere) -> None:
    assert run_here(taught, "--prompt", "-", typed="  2 + 2?\n")[:2] == (0, f"{ANSWER}\n")


def test_a_chat_through_pipes(taught: Path, run_here: RunHere) -> None:
    """The second answer needs the first turn; after /reset it does not come."""
    typed = "2 + 2?\n\nAnd one more?\n/reset\nAnd one more?\n/nonsense\n/exit\nnever read\n"
    code, output, errors = run_here(taught, "--max-new-tokens", "60", typed=typed)
    assert (code, errors) == (0, "")
    first, _, rest = output.partition(" tokens/s")
    assert first.startswith(f"<think>\n{REASONING}\n</think>\n\n{ANSWER}\n")
    second, _, rest = rest.partition(" tokens/s")
    assert second.split("\n\n", 1)[1].startswith("5\n2 tokens, ")
    assert "What was said is forgotten." in rest
    third = rest.partition("forgotten.\n")[2]
    assert not third.startswith("5\n")
    assert "/nonsense is no command; /reset forgets" in rest and rest.count("tokens/s") == 1


def test_a_reply_is_cut_off_at_the_limit(taught: Path, run_here: RunHere) -> None:
    code, output, errors = run_here(taught, "--prompt", "2 + 2?", "--max-new-tokens", "8")
    assert (code, output) == (0, "")
    assert errors.startswith("<think>\nTw") and "8 tokens, " in errors
    assert "cut off by --max-new-tokens (8) or the model's context" in errors


def test_temperature_and_seed(taught: Path, run_here: RunHere) -> None:
    def answer(*options: object) -> str:
        code, output, errors = run_here(taught, "--prompt", "Hi", "--max-new-tokens", 8, *options)
        assert code == 0
        return output + errors.partition("tokens")[0]

    hot = [answer("--temperature", 5, "--seed", seed) for seed in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2]
    assert answer("--temperature", 0) == answer("--seed", 3), "the checkpoint does not sample"


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no such folder": (("./nowhere",), "./nowhere is no folder; allowed: a folder with a model or an adapter"),
    "no such folder in one there is": (("tests/nowhere",), "tests/nowhere is no folder; allowed: a folder with"),
    "a file": (("{taught}/config.json",), "config.json is no folder"),
    "an empty folder": (("{empty}",), "holds no model (config.json), no adapter (adapter_config.json), and no run"),
    "no prompt": (("{taught}", "--prompt", " "), "is empty; allowed: some text"),
    "a base for a model": (("{taught}", "--base", "x"), "--base is x, but"),
    "no MTP": (("{taught}", "--use-mtp"), "--use-mtp: this qwen2 has no multi-token prediction modules"),
    "a template": (("{taught}", "--chat-template", "lama"), '"lama" is neither a file nor a shipped template'),
    "no template": (("{bare}",), "has no chat template, as is usual for base models; name one with --chat-template"),
    "no base": (("{orphan}",), "--base"),
    "a broken config": (("{broken}",), "broken"),
    "damaged weights": (("{damaged}",), "damaged"),
    "a temperature": (("{taught}", "--temperature", "-1"), "Invalid value for '--temperature'"),
    "tokens": (("{taught}", "--max-new-tokens", "0"), "Invalid value for '--max-new-tokens'"),
    "a refusing template": (("{taught}", "--chat-template", "{refuses}", "--prompt", "Hi"), "refuses this chat: never"),
}


@pytest.fixture(scope="module")
def places(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("places")
    places = {name: root / name for name in ("empty", "bare", "orphan", "broken", "damaged")}
    for name, folder in places.items():
        if name in ("bare", "broken", "damaged"):
            shutil.copytree(taught, folder)
        else:
            folder.mkdir()
    (places["bare"] / "chat_template.jinja").unlink()
    (places["broken"] / "config.json").write_text("{")
    weights = places["damaged"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    config = '{"peft_type": "LORA", "base_model_name_or_path": "/nowhere/at/all", "target_modules": ["q_proj"]}'
    (places["orphan"] / "adapter_config.json").write_text(config)
    places["refuses"] = root / "refuses.jinja"
    places["refuses"].write_text("{{ raise_exception('never') }}")
    return {"taught": taught, **places}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_line(mistake: str, places: dict[str, Path], run_here: RunHere) -> None:
    arguments, said = MISTAKES[mistake]
    code, output, errors = run_here(*(argument.format(**places) for argument in arguments))
    assert (code, output) == (2, "")
    assert said in errors and "Traceback" not in errors and "model.path" not in errors
    assert "Usage" in errors or errors.count("\n") == 1


def test_a_mistake_within_a_chat_does_not_end_it(taught: Path, tmp_path: Path, run_here: RunHere) -> None:
    template = tmp_path / "no_system.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
    template.write_text(refusal + shipped("chatml").text)
    typed = "/system Be brief.\n2 + 2?\n/system\n2 + 2?\n"
    code, output, _ = run_here(taught, "--chat-template", template, typed=typed)
    assert code == 0
    assert "refuses this chat: no system, please" in output
    assert output.partition("without a system message.\n")[2].startswith(
        f"<think>\n{REASONING}\n</think>\n\n{ANSWER}\n"
    )


def test_bytes_that_are_no_utf8(taught: Path, run_here: RunHere) -> None:
    code, _, errors = run_here(taught, "--prompt", "-", "--max-new-tokens", "2", typed="caf\udce9")
    assert code == 0 and "2 tokens" in errors


def test_in_a_terminal_reasoning_is_dim_and_the_answer_is_not(taught: Path) -> None:
    """A real process on a real terminal: typed line by line, ended by /exit."""
    main, other = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1", "NO_COLOR": ""}
    command = [sys.executable, "-m", "seeklet.finetune", "chat", str(taught)]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment, close_fds=True)
    os.close(other)
    shown = b""

    def read_until(text: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + 120
        while text.encode() not in shown:
            assert time.monotonic() < deadline, shown.decode(errors="replace")
            if select.select([main], [], [], 1)[0]:
                shown += os.read(main, 65536)

    try:
        read_until("/exit ends the chat")
        os.write(main, b"2 + 2?\n")
        read_until("tokens/s")
        os.write(main, b"/exit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(main)
    text = shown.decode().replace("\r\n", "\n").replace("\x1b[0m\x1b[2m", "")
    assert f"\x1b[2m{REASONING}\x1b[0m\n\n{ANSWER}\n" in text
    assert "<think>" not in text and "\x1b[2m**" not in text
