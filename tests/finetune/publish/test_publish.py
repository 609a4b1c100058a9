"""Publishing, from folder to Hub: what arrives loads in stock transformers bit by bit; the folder stays as it was."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM
from typer.testing import CliRunner

from seeklet import hub_upload
from seeklet.finetune.errors import PublishError
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.lora.merge import merge_adapter
from seeklet.finetune.publish.adapter_check import check_adapter
from seeklet.finetune.publish.licences import check_licence, licence_of
from seeklet.finetune.publish.model_card import BEGIN, END
from seeklet.finetune.publish.publish import PublishOptions, publish
from tests.finetune.conftest import RunHere
from tests.finetune.lora.adapters import settings
from tests.finetune.publish.model_folders import build_model, copy, tensors
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.server import Hub

REPO = "acme/support"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("DeepSeek-small", tmp_path_factory.mktemp("models") / "deepseek")


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    return WRITE_TOKEN


def digest(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_published_model_is_stock_transformers_own_bit_by_bit(model: Path, token: str, tmp_path: Path):
    before = digest(model)
    outcome = publish(model, "alice/support", PublishOptions(licence="apache-2.0"))
    assert outcome.published is not None, outcome.report.findings
    assert outcome.published.is_private and digest(model) == before
    there = Path(snapshot_download("alice/support", token=token, local_dir=tmp_path / "there"))
    ids = torch.arange(2, 30).unsqueeze(0)
    with torch.inference_mode():
        own = DeepseekV3ForCausalLM.from_pretrained(model)(ids).logits
        theirs = DeepseekV3ForCausalLM.from_pretrained(there)(ids).logits
    assert torch.equal(own, theirs)
    text = "Where is my order?"
    assert AutoTokenizer.from_pretrained(there)(text) == AutoTokenizer.from_pretrained(model)(text)
    assert set(digest(there)) >= {"README.md", "config.json", "model.safetensors", "chat_template.jinja"}


def test_own_card_is_kept_and_only_its_section_is_new(model: Path, tmp_path: Path):
    folder = copy(model, tmp_path / "model")
    own = f"---\nlicense: mit\ntags:\n- ours\n---\n\n# Ours\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"
    (folder / "README.md").write_text(own)
    outcome = publish(folder, REPO, PublishOptions(answer=False), dry_run=True)
    card = ModelCard(outcome.card)
    assert (
        card.data["license"] == "mit"
        and card.data["tags"] == ["ours"]
        and card.data["pipeline_tag"] == "text-generation"
    )
    assert card.text.strip().startswith("# Ours\n\nBefore.") and card.text.strip().endswith("After.")
    assert "old" not in card.text and f'from_pretrained("{REPO}"' in card.text and f"vllm serve {REPO}" in card.text
    assert outcome.report.hashes["model.safetensors"] in card.text
    (folder / "README.md").write_text(outcome.card)
    assert publish(folder, REPO, PublishOptions(answer=False), dry_run=True).card == outcome.card


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    return write_adapter(model, tmp_path / "adapter")


def write_adapter(model: Path, folder: Path, fill: float = 0.02) -> Path:
    peft = attach(AutoModelForCausalLM.from_pretrained(model), settings("attention", "routed_experts"))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(fill)
    save_adapter(peft, folder)
    values = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def test_adapter_goes_merged_with_itself_per_expert(adapter: Path, model: Path, token: str, tmp_path: Path):
    options = PublishOptions(licence="apache-2.0", base="acme/base", message="First")
    outcome = publish(adapter, "alice/tuned", options)
    assert outcome.published is not None, outcome.report.findings
    there = Path(snapshot_download("alice/tuned", token=token, local_dir=tmp_path / "there"))
    config = json.loads((there / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/base"
    merged, base = load_file(there / "model.safetensors"), load_file(model / "model.safetensors")
    changed = {name for name in merged if not torch.equal(merged[name], base[name])}
    assert any(".experts.3." in name for name in changed) and not any("norm" in name for name in changed)
    factors = load_file(there / "adapter" / "adapter_model.safetensors")
    assert any("experts.3.gate_proj.lora_A" in name for name in factors)
    card = ModelCard.load(there / "README.md")
    assert card.data["base_model"] == "acme/base" and card.data["base_model_relation"] == "finetune"
    DeepseekV3ForCausalLM.from_pretrained(there)


def test_adapter_goes_as_peft_wrote_it(adapter: Path):
    outcome = publish(adapter, REPO, PublishOptions(form="peft", base="acme/base", licence="mit"), dry_run=True)
    assert outcome.report.is_fit, outcome.report.findings
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(outcome.report.files)
    assert "model.safetensors" not in outcome.report.files and "library_name: peft" in outcome.card


def test_run_with_a_merged_model_goes_with_its_adapter(adapter: Path, model: Path, tmp_path: Path):
    run = tmp_path / "run"
    merge_adapter(copy(adapter, run / "adapter"), run / "merged", model)
    (run / "recipe.yaml").write_text(f"stage: sft\nmodel:\n  path: {model}\n")
    for folder in (run, run / "merged"):
        outcome = publish(folder, REPO, PublishOptions(base="acme/base", licence="mit", answer=False), dry_run=True)
        assert outcome.report.is_fit, outcome.report.findings
        assert {"model.safetensors", "adapter/adapter_model.safetensors"} <= set(outcome.report.files)
    unnamed = publish(run, REPO, PublishOptions(licence="mit", answer=False), dry_run=True)
    assert unnamed.report.is_fit and "adapter/adapter_config.json" not in unnamed.report.files
    assert any("--base" in finding.mend and finding.file == "adapter/" for finding in unnamed.report.findings)
    for form in ("peft", "per-expert"):
        alone = publish(run, REPO, PublishOptions(form=form, base="acme/base", licence="mit"), dry_run=True)
        assert alone.report.is_fit and "adapter_model.safetensors" in alone.report.files, alone.report.findings
        assert "model.safetensors" not in alone.report.files
    with pytest.raises(PublishError, match="a whole model and no adapter; leave out --adapter-as"):
        publish(model, REPO, PublishOptions(form="peft"), dry_run=True)


def test_forgotten_and_broken_adapters_are_refused(adapter: Path, model: Path, tmp_path: Path):
    zero = write_adapter(model, tmp_path / "zero", fill=0.0)
    assert any("changes nothing" in finding.wrong for finding in check_adapter(zero))
    merged = publish(zero, REPO, PublishOptions(base="acme/base", licence="mit", answer=False), dry_run=True)
    assert any("the base's, bit for bit" in finding.wrong for finding in merged.report.findings)
    local = [finding for finding in check_adapter(adapter) if finding.where == "base_model_name_or_path"]
    assert local and "--base" in local[0].mend


def test_run_folder_is_understood(model: Path, tmp_path: Path):
    run = tmp_path / "runs" / "support"
    copy(model, run / "model")
    (run / "model" / "README.md").unlink()
    tensors(lambda held: held["lm_head.weight"].add_(0.5))(run / "model")
    (run / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-3" / "optimizer.pt").write_bytes(b"x")
    (run / "recipe.yaml").write_text(
        f"stage: grpo\nmodel:\n  path: {model}\ndata:\n  train: ['hub:acme/questions@main:train']\n"
    )
    (run / "README.md").write_text("<!-- A draft. -->\n## Data\n\n- questions\n\n## Training\n\n- 3 steps\n")
    for folder in (run, run / "model"):
        outcome = publish(folder, REPO, PublishOptions(base="acme/base", answer=False), dry_run=True)
        card = ModelCard(outcome.card)
        # The base's card says under which licence it is.
        assert outcome.report.is_fit and card.data["license"] == "apache-2.0"
        assert card.data["datasets"] == ["acme/questions"] and "grpo" in (card.data["tags"] or [])
        assert "- 3 steps" in card.text and str(tmp_path) not in outcome.card
        assert not any("optimizer" in name for name in outcome.report.files)


def test_shim_loads_the_model_with_seeklet_where_that_is_asked(model: Path, token: str, tmp_path: Path):
    outcome = publish(model, "alice/shim", PublishOptions(licence="mit", with_code=True))
    assert outcome.published is not None, outcome.report.findings
    there = Path(snapshot_download("alice/shim", token=token, local_dir=tmp_path / "there"))
    loaded = AutoModelForCausalLM.from_pretrained(there, trust_remote_code=True)
    assert type(loaded).__name__ == "SeekletForCausalLM"
    DeepseekV3ForCausalLM.from_pretrained(there)


def test_dry_run_shows_everything_and_sends_nothing(model: Path, hub: Hub, run_here: RunHere):
    code, out, _ = run_here("publish", model, REPO, "--dry-run", "--license", "mit")
    assert code == 0 and "model.safetensors" in out and "# A model" in out and "Fit to publish" in out
    assert hub.journal.find("") == []


def test_bad_input_is_one_line_with_code_2(model: Path, tmp_path: Path, run_here: RunHere):
    for arguments in (
        (tmp_path / "none", REPO),
        (tmp_path, REPO),
        (model, "support"),
        (model, REPO, "--license", "mit", "--public", "--create-pr"),
    ):
        code, _, err = run_here("publish", *arguments)
        assert code == 2 and len(err.strip().splitlines()) == 1, (arguments, err)


def test_hub_upload_publishes_without_a_sub_command(model: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hub_upload.py", str(model), REPO, "--dry-run", "--license", "mit"])
    with pytest.raises(SystemExit) as exit:
        hub_upload.main()
    assert exit.value.code == 0 and "Fit to publish" in capsys.readouterr().out
    assert "kernels" in CliRunner().invoke(hub_upload.app, ["--help"]).output


def test_seeklet_code_is_for_its_own_architecture(tmp_path: Path):
    folder = build_model("Qwen3", tmp_path / "qwen")
    with pytest.raises(PublishError, match="DeepSeek-V3"):
        publish(folder, REPO, PublishOptions(with_code=True), dry_run=True)


@pytest.mark.parametrize(
    ("chosen", "base", "fits"),
    [
        ("mit", "deepseek-ai/DeepSeek-R1", True),
        ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("mit", "meta-llama/Llama-3.2-1B-Instruct", False),
        ("llama3.2", "meta-llama/Llama-3.2-1B-Instruct", True),
        ("apache-2.0", "google/gemma-2-2b", False),
        (None, "Qwen/Qwen2.5-3B-Instruct", True),
        ("apache-2.0", "Qwen/Qwen2.5-3B-Instruct", False),
        (None, "acme/unknown", False),
    ],
)
def test_licence_of_the_base_is_kept(chosen: str | None, base: str, fits: bool):
    found = check_licence(chosen, base, licence_of(base), public=True)
    assert (not any(finding.level == "error" for finding in found)) == fits
    assert all("--license" in finding.mend for finding in found)
