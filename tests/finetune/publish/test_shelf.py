"""Everything that is published loads from the Hub in stock transformers, in a process that cannot import seeklet."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.lora.merge import merge_adapter
from seeklet.finetune.publish.publish import PublishOptions, publish
from tests.finetune.lora.adapters import settings
from tests.finetune.publish import stock_loads
from tests.finetune.publish.model_folders import build_model, copy, tensors
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.client import list_environment
from tests.hub.server import Hub

KINDS = {"ours": "DeepSeek-small", "smollm2": "SmolLM2", "llama": "Llama-3.2", "qwen3-moe": "Qwen3-MoE"}
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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build_model(kind, root / name) for name, kind in KINDS.items()}


@pytest.fixture(autouse=True)
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)


def write_adapter(base: Path, folder: Path, *groups: str) -> Path:
    peft = attach(AutoModelForCausalLM.from_pretrained(base), settings(*groups))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.02)
    save_adapter(peft, folder)
    values = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def write_run(model: Path, run: Path, stage: str) -> Path:
    """Write a run of a stage that left a whole model."""
    copy(model, run / "model")
    (run / "model" / "README.md").unlink()
    tensors(lambda held: held["model.embed_tokens.weight"].mul_(1.5))(run / "model")
    teacher = f"teacher:\n  path: {model}\n" if stage == "distill" else ""
    (run / "recipe.yaml").write_text(f"stage: {stage}\nmodel:\n  path: {model}\n{teacher}")
    return run


def send(folder: Path, name: str, form: str = "merged", **options: bool) -> ModelCard:
    outcome = publish(
        folder,
        f"alice/{name}",
        PublishOptions(form=form, base="alice/base", licence="mit", answer=False, **options),  # pyright: ignore
    )
    assert outcome.published is not None, outcome.report.findings
    return ModelCard(outcome.card)


def run_without_seeklet(hub: Hub, home: Path, *command: str) -> str:
    variables = {"OMP_NUM_THREADS": "1", "PATH": "", **list_environment(hub, home / "reader", token=WRITE_TOKEN)}
    ran = subprocess.run(
        [sys.executable, *command], env=variables, capture_output=True, text=True, timeout=120, cwd=home
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_whole_models_and_runs(models: dict[str, Path], hub: Hub, tmp_path: Path) -> None:
    folders = dict(models)
    for name, folder in models.items():
        send(folder, name)
    send(models["ours"], "shim", with_code=True)
    folders["shim"] = models["ours"]
    for stage, name in (("grpo", "ours"), ("distill", "smollm2")):
        run = write_run(models[name], tmp_path / stage, stage)
        assert stage in str(send(run, stage).data.get("tags"))
        folders[stage] = run / "model"
    pairs = [text for name, folder in folders.items() for text in (f"alice/{name}", str(folder))]
    said = run_without_seeklet(hub, tmp_path, stock_loads.__file__, *pairs).splitlines()
    assert [line.split()[:2] for line in said] == [[f"alice/{name}", "same"] for name in folders]
    assert said[0].endswith("DeepseekV3ForCausalLM")


def test_adapters_merged(models: dict[str, Path], hub: Hub, tmp_path: Path) -> None:
    pairs = []
    for name, groups in (("ours", ("attention", "routed_experts")), ("smollm2", ("attention",))):
        adapter = write_adapter(models[name], tmp_path / name, *groups)
        merge_adapter(adapter, tmp_path / f"{name}-merged")
        send(adapter, f"{name}-tuned")
        pairs += [f"alice/{name}-tuned", str(tmp_path / f"{name}-merged")]
        assert "adapter/adapter_model.safetensors" in hub.repository(f"alice/{name}-tuned").tree()
    said = run_without_seeklet(hub, tmp_path, stock_loads.__file__, *pairs).splitlines()
    assert [line.split()[1] for line in said] == ["same", "same"]


@pytest.mark.parametrize(("name", "groups"), [("smollm2", ("attention",)), ("ours", ("attention", "routed_experts"))])
def test_snippets_of_the_cards_run_as_written(
    name: str, groups: tuple[str, ...], models: dict[str, Path], hub: Hub, tmp_path: Path
) -> None:
    adapter, merged = write_adapter(models[name], tmp_path / "adapter", *groups), tmp_path / "merged"
    merge_adapter(adapter, merged)
    for repo, card in (("base", send(models[name], "base")), ("tuned", send(adapter, "tuned", form="peft"))):
        [snippet] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        assert f'"alice/{repo}"' in snippet
        script = tmp_path / f"run_{repo}.py"
        script.write_text(NO_SEEKLET + snippet + COMPARED.format(folder=models[name] if repo == "base" else merged))
        assert float(run_without_seeklet(hub, tmp_path, str(script)).split()[-1]) < 1e-4
