"""Names on the Hub where there is no network: one line at once, and what is in the cache all the same."""

import shutil
import socket
import time
from pathlib import Path

import pytest

from seeklet.finetune.evaluation.models import load_tokenizer
from seeklet.finetune.hub_reach import is_cache_all, why_unreachable
from seeklet.finetune.meta_model import load_config
from seeklet.finetune.recipe import ModelSettings
from seeklet.finetune.training_model import load_for_training
from tests.finetune.conftest import RunHere
from tests.finetune.data.hub import serve_datasets
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint

SUPPORT = ROOT / "recipes" / "sft_smollm2-135m_support_cpu.yaml"
COMMIT = "0" * 40


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Put a Hub that nobody answers for in place of the real one, and an empty cache; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return address


def test_a_data_set_a_model_and_a_tokenizer_are_refused_in_a_line(
    endpoint: str, run_here: RunHere, tmp_path: Path
) -> None:
    started = time.perf_counter()
    missing = f"the Hub ({endpoint}) cannot be reached: Connection refused"
    uncached = f"{missing}, and the cache does not hold it; name a folder, or try again with a network\n"
    code, output, _ = run_here("data", "check", "hub:acme/chats")
    assert code == 2 and f"  hub:acme/chats: cannot be read: {missing}\n" in output
    (tmp_path / "a.jsonl").write_text('{"question": "How?", "answer": "So."}\n')
    code, output, errors = run_here("data", "check", tmp_path / "a.jsonl", "--tokenizer", "acme/nano")
    assert (code, output, errors) == (2, "", f'tokenizer "acme/nano" cannot be loaded: {uncached}')
    options = (f"data.train={tmp_path / 'a.jsonl'}", f"output.dir={tmp_path / 'out'}", "model.path=acme/nano")
    for dry_run in ((), ("--dry-run",)):
        code, output, errors = run_here("train", SUPPORT, *options, *dry_run)
        assert (code, output, errors) == (2, "", f"model.path: acme/nano: {uncached}")
    # The libraries alone would try for 24 s each time, for a tokenizer twice.
    assert time.perf_counter() - started < 80


def test_what_is_in_the_cache_is_found(endpoint: str, tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "models--acme--nano"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(COMMIT)
    shutil.copytree(build_checkpoint("Moonlight", tmp_path / "nano"), entry / "snapshots" / COMMIT)
    settings = ModelSettings(path="acme/nano", dtype="float32")
    started = time.perf_counter()
    assert load_config(settings).hidden_size == load_for_training(settings).config.hidden_size == 32
    assert load_tokenizer(settings).eos_token == "<|im_end|>"
    assert time.perf_counter() - started < 20


def test_a_hub_that_answers_and_folders(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_cache_all("acme/nano") and not is_cache_all(str(tmp_path))
    with serve_datasets({}) as there:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", there)
        # It refuses this page, and so is there.
        assert why_unreachable() == ""


def test_libraries_that_are_told_to_stay_offline_are_left_alone(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert why_unreachable() == ""
