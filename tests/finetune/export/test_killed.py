"""An export that is killed ends its converter too, and leaves nothing that has a model's name."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from seeklet.finetune.errors import ExportError
from seeklet.finetune.export.convert import convert
from seeklet.finetune.export.converter_source import SCRIPT, Converter

FIRST = "from __future__ import annotations\n"
# The converter, from which seeklet reads what it can do, but that it writes on and on, and imports no torch for it.
SLOW = """
import sys, time
if __name__ == "__main__":
    with open(sys.argv[sys.argv.index("--outfile") + 1], "wb") as file:
        while True:
            file.write(b"half")
            file.flush()
            time.sleep(0.01)
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_it_writes(by: signal.Signals, small: Path, knowing: Converter, tmp_path: Path) -> None:
    out, slow = tmp_path / "out", tmp_path / "llama.cpp"
    shutil.copytree(knowing.script.parent, slow)
    (slow / SCRIPT).write_text(knowing.script.read_text(encoding="utf-8").replace(FIRST, FIRST + SLOW, 1))
    # The bound keeps a machine that is slow from hanging here, and has nothing to do with what is tested.
    command = [sys.executable, "-m", "seeklet.finetune", "export", str(small), "--gguf", "f32", "--out", str(out)]
    command += ["--converter", str(slow)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    begun = time.monotonic()
    while not list(out.glob(".*.saving-*")):
        assert process.poll() is None and time.monotonic() < begun + 120
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    assert len(children) == 1
    process.send_signal(by)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if by == signal.SIGKILL else 130)
    assert b"Traceback" not in errors
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone and not alive
    assert list(out.iterdir()) == []


def test_what_llama_cpp_says_is_one_line(converter: Converter, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["DeepseekV3ForCausalLM"]}')
    with pytest.raises(ExportError) as raised:
        convert(converter, tmp_path / "model", "f32", "x", tmp_path / "x.gguf", 1000, Console(quiet=True))
    message = str(raised.value)
    assert message.startswith("converting to f32: llama.cpp gave up (exit code 1): ") and "\n" not in message
    assert not (tmp_path / "x.gguf").exists()
