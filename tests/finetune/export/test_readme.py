"""What the README says of export runs as written."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from seeklet.finetune.export.converter_source import Converter
from seeklet.finetune.export.fetch_converter import SIZE_MB, VERSION
from tests.finetune.conftest import RunHere

ROOT = Path(__file__).resolve().parents[3]


def test_commands_of_the_readme(
    deepseek: Path, converter: Converter, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a folder where the run's merged model is a nano model with a published tokenizer."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## GGUF for llama.cpp and Ollama\n")[1]
    section = section.split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    _, export, create = (shlex.split(line) for line in block.splitlines())
    run = tmp_path / export[2]
    shutil.copytree(deepseek.parent, run)
    monkeypatch.chdir(tmp_path)
    code, text, _ = run_here(*export[1:])
    assert code == 0, text
    assert export[0] == "seeklet" and create[:2] == ["ollama", "create"]
    modelfile = tmp_path / create[-1]
    weights = modelfile.read_text(encoding="utf-8").splitlines()[0].removeprefix("FROM ./")
    assert {path.name for path in modelfile.parent.iterdir()} == {"Modelfile", weights, ".seeklet-export.json"}
    assert f"{SIZE_MB} MB once" in section and VERSION in section
