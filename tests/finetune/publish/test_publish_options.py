"""`seeklet publish` and `seeklet verify` with each of their options, over HTTP; what the Hub has then."""

import dataclasses
import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, HfApi
from huggingface_hub._eval_results import parse_eval_result_entries
from rich.console import Console

from seeklet import hub_upload
from seeklet.finetune.byte_progress import byte_progress, growth_progress
from seeklet.finetune.errors import PublishError
from seeklet.finetune.publish.publish import PublishOptions, publish
from seeklet.finetune.publish.staging import link_folder
from seeklet.finetune.publish.upload import upload
from tests.finetune.conftest import RunHere
from tests.finetune.publish.model_folders import build_model, copy, edit, tensors
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.faults import Fault
from tests.hub.server import Hub

NAME = "alice/support"
QUICK = ("--no-answer", "--license", "mit")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("DeepSeek-small", tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def model(built: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    return copy(built, tmp_path / "model")


def test_branch_tag_parent_and_pull_request(model: Path, hub: Hub, run_here: RunHere) -> None:
    code, out, _ = run_here("publish", model, NAME, *QUICK, "--tag", "v1", "--message", "First")
    refs = hub.repository(NAME).refs
    first = refs["refs/heads/main"]
    assert code == 0 and f"Published (private): {hub.endpoint}/{NAME}" in out and refs["refs/tags/v1"] == first
    assert hub.repository(NAME).commits[first].title == "First"
    tensors(lambda held: held["lm_head.weight"].mul_(2))(model)
    code, out, _ = run_here("publish", model, NAME, *QUICK, "--revision", "v2", "--parent-commit", first[:9])
    assert code == 0 and f"{hub.endpoint}/{NAME}/tree/v2" in out
    assert refs["refs/heads/main"] == first and hub.repository(NAME).commits[refs["refs/heads/v2"]].parent == first
    code, _, err = run_here("publish", model, NAME, *QUICK, "--parent-commit", "0123456")
    assert code == 2 and f"main is at {first}, and not at 0123456 as expected" in err
    code, out, _ = run_here("publish", model, NAME, *QUICK, "--create-pr")
    assert code == 0 and f"{hub.endpoint}/{NAME}/discussions/1" in out and refs["refs/heads/main"] == first
    code, _, err = run_here("publish", model, NAME, *QUICK, "--revision", "v1")
    assert code == 2 and '"v1" is a tag, and a tag does not move; name a branch' in err


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_public_and_gated(gated: str, model: Path, hub: Hub, run_here: RunHere) -> None:
    code, out, _ = run_here("publish", model, NAME, *QUICK, "--public", "--gated", gated)
    assert code == 0 and "Published: " in out
    assert not hub.repository(NAME).is_private and hub.repository(NAME).gated == gated
    code, _, err = run_here("publish", model, NAME, *QUICK)
    assert code == 2 and "this repository is public, and all that goes there is; add --public" in err
    assert run_here("publish", model, NAME, "--gated", "yes")[0] == 2


def test_seeklet_code_and_what_is_mended(model: Path, hub: Hub, run_here: RunHere) -> None:
    edit("config.json", lambda values: values.pop("scoring_func"))(model)
    code, out, _ = run_here("publish", model, NAME, *QUICK, "--with-seeklet-code")
    assert code == 2 and "config.json: scoring_func: is missing" in out and "(--fix does)" in out
    assert hub.store.repositories == {}
    code, out, _ = run_here("publish", model, NAME, *QUICK, "--with-seeklet-code", "--fix")
    assert code == 0 and "mended: config.json: scoring_func" in out
    tree = hub.repository(NAME).tree()
    there = json.loads(hub.store.object(tree["config.json"].oid).read_text())
    assert there["scoring_func"] == "sigmoid" and "modeling_seeklet.py" in tree
    assert set(there["auto_map"].values()) == {
        "modeling_seeklet.SeekletConfig",
        "modeling_seeklet.SeekletForCausalLM",
    }
    assert "scoring_func" not in json.loads((model / "config.json").read_text())


def test_what_was_mended_is_no_difference(model: Path, hub: Hub, run_here: RunHere) -> None:
    edit("config.json", lambda values: values.pop("scoring_func"))(model)
    tensors(lambda held: None, {"made_at": "/" + "home/somebody/runs"})(model)
    (model / "generation_config.json").unlink()
    assert run_here("publish", model, NAME, *QUICK, "--fix")[0] == 0
    code, out, _ = run_here("verify", model, NAME)
    assert code == 1 and "3 differ" in out and "published with --fix, verify with --fix, too" in out
    code, out, _ = run_here("verify", model, NAME, "--fix")
    assert code == 0 and "The same, but for what publishing writes" in out, out
    edit("config.json", lambda values: values.update(n_group=1))(model)
    code, out, _ = run_here("verify", model, NAME, "--fix")
    assert code == 1 and "1 differ" in out and "n_group is 2 on the Hub, and 1 in the folder" in out
    assert "scoring_func" not in out and "generation_config" not in out and "safetensors" not in out


def test_weights_that_change_after_they_were_checked_stay_here(model: Path, hub: Hub) -> None:
    options = PublishOptions(licence="mit", answer=False)
    with pytest.raises(PublishError, match=r"model\.safetensors: was changed on the way"):
        publish(model, NAME, options, show=lambda _: tensors(lambda held: held["lm_head.weight"].mul_(2))(model))
    assert hub.store.repositories == {}


def test_what_is_never_published_is_not_copied(model: Path, tmp_path: Path) -> None:
    (model / "optimizer.pt").write_bytes(b"large")
    link_folder(model, tmp_path / "staged")
    links = {path.name for path in (tmp_path / "staged").iterdir() if path.is_symlink()}
    assert links == {"optimizer.pt", "model.safetensors"}


def test_verify(model: Path, hub: Hub, run_here: RunHere) -> None:
    assert run_here("publish", model, NAME, *QUICK)[0] == 0
    code, out, _ = run_here("verify", model, NAME)
    [back] = re.findall(r"([\d,]+) B of configs and headers read back", out)
    header = 8 + int.from_bytes((model / "model.safetensors").read_bytes()[:8], "little")
    configs = sum(file.stat().st_size for file in model.glob("*.json"))
    assert code == 0 and int(back.replace(",", "")) == header + configs
    tensors(lambda held: held["lm_head.weight"].mul_(2))(model)
    edit("config.json", lambda values: values.update(rope_theta=7.0))(model)
    code, out, _ = run_here("verify", model, NAME)
    assert code == 1 and "2 differ; publish again" in out
    assert "differs: config.json: " in out and "rope_theta is 10000.0 on the Hub, and 7.0 in the folder" in out
    assert "model.safetensors: has another hash on the Hub than in the folder: the same tensors with other nu" in out
    tensors(lambda held: held.pop("lm_head.weight"))(model)
    code, out, _ = run_here("verify", model, NAME)
    assert code == 1 and re.search(r"lm_head.weight is F32 \[\d+, \d+\] on the Hub, and missing in the folder", out)
    code, _, err = run_here("verify", model, "alice/other")
    assert code == 2 and "alice/other: not found, or not for the eyes of this token" in err
    code, _, err = run_here("verify", model, NAME, "--revision", "v9")
    assert code == 2 and "there is no such branch, tag or commit" in err


def test_verify_needs_no_token_for_what_all_see(
    model: Path, hub: Hub, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_here("publish", model, NAME, *QUICK, "--public")[0] == 0
    monkeypatch.delenv("HF_TOKEN")
    assert run_here("verify", model, NAME)[0] == 0
    HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN).upload_file(
        path_or_fileobj=b"{}", path_in_repo="model-00002-of-00002.safetensors", repo_id=NAME
    )
    code, out, _ = run_here("verify", model, NAME)
    assert code == 1 and "model-00002-of-00002.safetensors: is on the Hub, and not in " in out


def test_the_hub_asks_to_wait(model: Path, hub: Hub, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("seeklet.finetune.publish.commit.time.sleep", waited.append)
    for path in ("POST .*/preupload/", "POST .*/commit/"):
        hub.faults.add(Fault(path, status=429, message="Too many requests", headers={"Retry-After": "17"}, times=1))
    assert run_here("publish", model, NAME, *QUICK)[0] == 0
    # The library adds a second.
    assert waited == [18.0, 17.0]


def test_kernel_repository(hub: Hub, tmp_path: Path, run_here: RunHere) -> None:
    from seeklet.finetune.publish.kernels import assemble_kernel_repository

    assemble_kernel_repository(tmp_path / "kernels", "seeklet-kernels", 1)
    files = [
        str(file.relative_to(tmp_path / "kernels")) for file in (tmp_path / "kernels").rglob("*") if file.is_file()
    ]
    done = upload(tmp_path / "kernels", "alice/seeklet-kernels", files, repo_type="kernel", token=WRITE_TOKEN)
    assert done.url == f"{hub.endpoint}/kernels/alice/seeklet-kernels" and done.comparison.differences == []
    assert set(hub.repository("alice/seeklet-kernels", "kernel").tree()) == {".gitattributes", *files}


def test_a_benchmark_of_the_hub_is_an_entry_of_its_leaderboard(model: Path, hub: Hub, tmp_path: Path) -> None:
    run, sha = tmp_path / "run", "6a8b1e3c" * 5
    copy(model, run / "model")
    (run / "recipe.yaml").write_text(
        f"stage: grpo\nmodel:\n  path: acme/base\nprompts:\n  train: [a.jsonl]\n"
        f"  validation: ['hub:acme/sums/hard@{sha}:test']\n"
    )
    report = {
        "problems": 30,
        "samples": 16,
        "figures": {"pass@1": {"value": 79.7916}, "maj@16": {"value": 86.7}},
        "settings": {"temperature": 0.6, "top_p": 0.95},
    }
    (run / "after").mkdir()
    (run / "after" / "reasoning.json").write_text(json.dumps(report))
    (run / "after" / "reasoning.md").write_text("# run\n\n| pass@1 (%) | 79.8 |\n\n## Answers\n\nsecret\n")
    (run / "stages.md").write_text("# Stages\n\n| before | 12.5 |\n")
    outcome = publish(run, NAME, PublishOptions(licence="mit", answer=False))
    assert outcome.published is not None and ".eval_results/acme_sums.yaml" in outcome.report.files
    api = HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN)
    written = api.hf_hub_download(NAME, ".eval_results/acme_sums.yaml")
    [entry] = parse_eval_result_entries(yaml.safe_load(Path(written).read_text()))
    assert dataclasses.asdict(entry) == dataclasses.asdict(
        EvalResultEntry(
            dataset_id="acme/sums",
            task_id="hard",
            value=79.79,
            dataset_revision=sha,
            notes="pass@1 of 30 problems, 16 attempts each, temperature 0.6, top-p 0.95",
        )
    )
    assert "### Stages" in outcome.card and "| pass@1 (%) | 79.8 |" in outcome.card and "secret" not in outcome.card


def test_progress_of_what_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seeklet.finetune.byte_progress.LINE_EVERY_S", 0)
    monkeypatch.setattr("seeklet.finetune.byte_progress._LOOK_EVERY_S", 0.01)
    output = io.StringIO()
    console = Console(file=output, width=200)
    with byte_progress(console, "checked", 40_000_000) as advance:
        for _ in range(4):
            advance(10_000_000)
    lines = output.getvalue().splitlines()
    assert [line.split(" MB")[0] for line in lines] == [f"  checked {n} of 40" for n in (10, 20, 30, 40)]
    assert all(re.search(r" · [\d,.]+ MB/s · \d:\d\d:\d\d left$", line) for line in lines)
    output.truncate(0)
    with growth_progress(console, "merged", tmp_path, None):
        (tmp_path / "model").write_bytes(bytes(3_000_000))
        for _ in range(500):
            if "merged 3 MB" in output.getvalue():
                break
            time.sleep(0.01)
    assert "merged 3 MB" in output.getvalue()


def test_pre_flight_says_how_far_it_is(
    model: Path, hub: Hub, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seeklet.finetune.byte_progress.LINE_EVERY_S", 0)
    _, out, _ = run_here("publish", model, NAME, *QUICK, "--dry-run")
    assert re.search(r"  checked \d+ of \d+ MB · .* left", out)


def test_hub_upload_does_the_same(
    model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hub_upload.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            hub_upload.main()
        said = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return exit.value.code, said.out + said.err

    code, out = run(model, NAME, *QUICK)
    assert code == 0 and "Published (private): " in out and hub.repository(NAME).is_private
    assert run("verify", model, NAME)[0] == 0
    edit("config.json", lambda values: values.update(rope_theta=7.0))(model)
    assert run("verify", model, NAME)[0] == 1
    assert run("verify", model, "alice/other")[0] == 2
    code, out = run("kernels", "--out", model / "config.json" / "kernels")
    assert code == 2 and len(out.strip().splitlines()) == 1
