"""The commands of the README's section on one's own data, as written."""

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.finetune.conftest import RunHere
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint


def test_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere) -> None:
    """In a folder where the name of the recipe's model is a nano model of the same architecture."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own data\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("seeklet ")]
    assert [command[1] for command in commands] == [
        *("data", "train", "train", "evaluate"),
        *("merge", "export-adapter", "chat"),
    ]
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    build_checkpoint(name, tmp_path / name)
    said = []
    for command in commands:
        code, output, errors = run_here(*command[1:])
        assert code == 0, (command, output + errors)
        said.append(output)
    assert "0 errors" in said[0]
    assert "nothing was trained" in said[1]
    run = Path("runs/sft_smollm2-135m_support_cpu")
    for left in ("adapter", "merged", "metrics.jsonl", "plots/loss.png", "README.md", "evaluation.md"):
        assert (run / left).exists(), left
    assert Path("merged/model.safetensors").read_bytes() == (run / "merged" / "model.safetensors").read_bytes()
