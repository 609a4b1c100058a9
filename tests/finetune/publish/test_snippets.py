"""The Python snippets of published cards run as written, where seeklet cannot be imported."""

import re
from pathlib import Path

import pytest

from seeklet.finetune.lora.merge import merge_adapter
from tests.finetune.publish.model_folders import build_model
from tests.finetune.publish.shelf import run_without_seeklet, send, write_adapter
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.server import Hub

NO_SEEKLET = """
import sys
class NoSeeklet:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "seeklet":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoSeeklet())
"""
COMPARED = """
import torch
ids = torch.arange(2, 40).unsqueeze(0)
with torch.inference_mode():
    other = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
    print(float((model.eval()(ids).logits - other(ids).logits).abs().max()))
"""
KINDS = {"ours": "DeepSeek-small", "smollm2": "SmolLM2"}


@pytest.mark.parametrize(("name", "groups"), [("smollm2", ("attention",)), ("ours", ("attention", "routed_experts"))])
def test_snippets_of_the_cards_run_as_written(
    name: str, groups: tuple[str, ...], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    model = build_model(KINDS[name], tmp_path / "model")
    adapter, merged = write_adapter(model, tmp_path / "adapter", *groups), tmp_path / "merged"
    merge_adapter(adapter, merged)
    for repo, card in (("base", send(model, "base")), ("tuned", send(adapter, "tuned", form="peft"))):
        [snippet] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        assert f'"alice/{repo}"' in snippet
        script = tmp_path / f"run_{repo}.py"
        script.write_text(NO_SEEKLET + snippet + COMPARED.format(folder=model if repo == "base" else merged))
        assert float(run_without_seeklet(hub, tmp_path, str(script)).split()[-1]) < 1e-4
