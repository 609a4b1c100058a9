"""Everything that is published loads from the Hub in stock transformers, in a process that cannot import seeklet."""

from pathlib import Path

import pytest

from seeklet.finetune.lora.merge import merge_adapter
from tests.finetune.publish import stock_loads
from tests.finetune.publish.model_folders import build_model, copy, tensors
from tests.finetune.publish.shelf import run_without_seeklet, send, write_adapter
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.server import Hub

KINDS = {"ours": "DeepSeek-small", "smollm2": "SmolLM2", "llama": "Llama-3.2", "qwen3-moe": "Qwen3-MoE"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build_model(kind, root / name) for name, kind in KINDS.items()}


@pytest.fixture(autouse=True)
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)


def write_run(model: Path, run: Path, stage: str) -> Path:
    """Write a run of a stage that left a whole model."""
    copy(model, run / "model")
    (run / "model" / "README.md").unlink()
    tensors(lambda held: held["model.embed_tokens.weight"].mul_(1.5))(run / "model")
    teacher = f"teacher:\n  path: {model}\n" if stage == "distill" else ""
    (run / "recipe.yaml").write_text(f"stage: {stage}\nmodel:\n  path: {model}\n{teacher}")
    return run


@pytest.mark.slow
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
