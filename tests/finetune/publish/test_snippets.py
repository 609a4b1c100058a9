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
    difference = float((model.eval()(ids).logits - other(ids).logits).abs().max())
    print("\\ndifference of {repo}:", difference)
"""
KINDS = {"smollm2": ("SmolLM2", ("attention",)), "ours": ("DeepSeek-small", ("attention", "routed_experts"))}


@pytest.mark.slow
def test_snippets_of_the_cards_run_as_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one process, as importing transformers takes most of the time."""
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    script = NO_SEEKLET
    for name, (kind, groups) in KINDS.items():
        model = build_model(kind, tmp_path / name / "model")
        adapter, merged = write_adapter(model, tmp_path / name / "adapter", *groups), tmp_path / name / "merged"
        merge_adapter(adapter, merged)
        published = ((f"{name}-base", model, model, "merged"), (f"{name}-tuned", adapter, merged, "peft"))
        for repo, folder, same, form in published:
            card = send(folder, repo, form=form, base=f"alice/{name}-base")
            [snippet] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
            assert f'"alice/{repo}"' in snippet
            script += snippet + COMPARED.format(repo=repo, folder=same)
    (tmp_path / "run.py").write_text(script)
    said = dict(
        re.findall(r"^difference of (\S+): (\S+)$", run_without_seeklet(hub, tmp_path, str(tmp_path / "run.py")), re.M)
    )
    assert list(said) == [f"{name}-{form}" for name in KINDS for form in ("base", "tuned")]
    assert all(float(difference) < 1e-4 for difference in said.values())
