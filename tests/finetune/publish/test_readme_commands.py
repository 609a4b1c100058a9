"""What the README says of publishing does what it says, in its order, command by command."""

import re
import shlex
from pathlib import Path

import pytest

from tests.finetune.conftest import RunHere
from tests.finetune.publish.model_folders import build_model, edit
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.server import Hub

README = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
RUN, NAME = "runs/sft_smollm2-135m_support_cpu", "acme/support-assistant"


def test_commands_run_as_written(hub: Hub, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.split("## Publish it\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [command[:4] for command in commands] == [
        ["seeklet", name, RUN, NAME] for name in ("publish", "publish", "verify", "publish", "publish")
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    build_model("SmolLM2", Path(RUN) / "merged")
    Path(RUN, "merged", "README.md").unlink()
    recipe = "stage: sft\nmodel:\n  path: HuggingFaceTB/SmolLM2-135M-Instruct\ndata:\n  train: [support.jsonl]\n"
    Path(RUN, "recipe.yaml").write_text(recipe)
    output = []
    for number, command in enumerate(commands):
        if number == 3:
            # A next version.
            edit("generation_config.json", lambda values: values.update(temperature=0.6, do_sample=True))(
                Path(RUN, "merged")
            )
        code, out, err = run_here(*command[1:])
        assert code == 0, (command, out, err)
        output.append(out)
        assert bool(hub.store.repositories) == (number > 0)
    refs = hub.repository(NAME).refs
    assert hub.repository(NAME).is_private
    assert refs["refs/heads/v2"] == refs["refs/tags/v2.0"] != refs["refs/heads/main"] and "refs/pr/1" in refs
    assert "license: apache-2.0" in output[0] and "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in output[0]
    assert "The same" in output[2] and output[4].strip().endswith("/discussions/1")
