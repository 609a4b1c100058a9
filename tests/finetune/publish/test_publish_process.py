"""`seeklet publish` and `verify` in processes of their own: exit code 2 and one line for all that stands against it."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.finetune.publish.cli_process import run_cli
from tests.finetune.publish.model_folders import build_model
from tests.hub.accounts import EXPIRED_TOKEN, OTHER_TOKEN, READ_TOKEN, UNKNOWN_TOKEN, WRITE_TOKEN
from tests.hub.client import list_environment
from tests.hub.faults import Fault
from tests.hub.repositories import Repository
from tests.hub.server import Hub

NAME = "alice/support"
TOKENS = (WRITE_TOKEN, READ_TOKEN, OTHER_TOKEN, EXPIRED_TOKEN, UNKNOWN_TOKEN)


BOTH = """
import json, sys
from seeklet.finetune import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["seeklet", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        print("ended with", end.code)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("SmolLM2", tmp_path_factory.mktemp("models") / "model")


def hash_folder(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def model(built: Path, tmp_path: Path) -> Iterator[Path]:
    """Give a folder, and see that it is as it was at the end."""
    folder = tmp_path / "model"
    shutil.copytree(built, folder)
    before = hash_folder(folder)
    yield folder
    assert hash_folder(folder) == before


def refuse(hub: Hub, home: Path, model: Path, *options: str, name: str = NAME, **settings: Any) -> str:
    """Return the one line that the command ends with."""
    settings = {"token": WRITE_TOKEN, **settings}
    ended = run_cli(hub, home, "publish", model, name, "--no-answer", *options, **settings)
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1 and "Traceback" not in ended.out, ended
    assert [token for token in TOKENS if token in ended.out + ended.err] == []
    # Nothing of the model is ever seen half.
    if repository := hub.store.find("model", name):
        assert set(repository.tree()) == {".gitattributes"}
    return ended.err.strip()


def test_tokens(hub: Hub, model: Path, tmp_path: Path) -> None:
    for token, said in (
        (None, "there is no token for the Hub; make one with write access at "),
        (EXPIRED_TOKEN, "the token has expired; make one with write access at "),
        (UNKNOWN_TOKEN, "the Hub does not take the token; make one with write access at "),
        (READ_TOKEN, "the token is for reading only; make one with write access at "),
    ):
        assert refuse(hub, tmp_path, model, token=token).startswith(f"{NAME}: {said}")
    assert refuse(hub, tmp_path, model, token=OTHER_TOKEN).startswith(
        f"{NAME}: the token of bob may not write here (You don't have the rights to create a model"
    )


@pytest.mark.parametrize("kind", ["dataset", "space", "kernel"])
def test_repository_of_another_type(kind: str, hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.store.add(Repository(kind, NAME, is_private=True))
    assert refuse(hub, tmp_path, model) == f"{NAME}: is a {kind} on the Hub, not a model; take another name"


def test_names(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.store.add(Repository("model", "acme/nano", is_private=True, readers=["carol"]))
    assert "the name is taken by a repository that this token may not see" in refuse(
        hub, tmp_path, model, name="acme/nano"
    )
    assert '"a b" is no name on the Hub; allowed: ' in refuse(hub, tmp_path, model, name="alice/a b")
    assert "name the owner, too" in refuse(hub, tmp_path, model, name="nano")


def test_options_are_refused_before_anything_is_read(hub: Hub, model: Path, tmp_path: Path) -> None:
    (model / "config.json").rename(model.parent / "config.json")
    for options, said in (
        (("--create-pr", "--revision", "v2"), "a pull request goes to main"),
        (("--tag", "a b"), '--tag "a b" is no name'),
        (("--parent-commit", "main"), 'expected parent commit "main"; allowed: 7 to 40 digits'),
    ):
        assert said in refuse(hub, tmp_path, model, *options)
    (model.parent / "config.json").rename(model / "config.json")
    assert hub.journal.find(".") == []


def test_offline(hub: Hub, model: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert f"the Hub ({nowhere}) cannot be reached: Connection refused; nothing was sent" in refuse(
        hub, tmp_path, model, endpoint=nowhere
    )
    assert "HF_HUB_OFFLINE is set, so nothing is sent; unset it" in refuse(hub, tmp_path, model, is_offline=True)
    verified = run_cli(hub, tmp_path, "verify", model, NAME, is_offline=True)
    assert verified.code == 2 and "HF_HUB_OFFLINE is set, so nothing is compared" in verified.err


def test_quota(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.quota = 1000
    assert "the storage is full: Private repository storage limit reached" in refuse(hub, tmp_path, model)


@pytest.mark.parametrize("path", ["GET /api/whoami", "POST .*/preupload/", "POST .*/commit/"])
def test_rate_limit(path: str, hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.faults.add(Fault(path, status=429, message="Too many requests", headers={"Retry-After": "3700"}, times=99))
    assert "the Hub takes no more requests for now (rate limit); try again in 3,700 s; what was sent is kept" in refuse(
        hub, tmp_path, model
    )


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("PUT /_lfs/", 500),
        ("PUT /_lfs/", None),
        ("POST .*/commit/", 500),
        ("POST .*/commit/", None),
        ("GET .*/tree/", None),
    ],
)
def test_the_hub_fails_mid_way(path: str, status: int | None, hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.faults.add(Fault(path, status=status, times=99))
    said = refuse(hub, tmp_path, model)
    assert ("the Hub failed several times (500: " if status else "the connection to the Hub broke") in said
    assert said.endswith("what was sent is kept, and the same command goes on from there")
    hub.faults.clear()
    assert run_cli(hub, tmp_path, "publish", model, NAME, "--no-answer", token=WRITE_TOKEN).code == 0


@pytest.mark.parametrize("has_xet", [True, False])
def test_disk_full(has_xet: bool, hub: Hub, model: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: of the copy that is published, or of what hf_xet keeps."""
    said = refuse(hub, tmp_path, model, has_xet=has_xet, max_file_bytes=64)
    assert "no space left for what is to be published; free some, or set TMPDIR" in said
    # The small files fit, and what hf_xet keeps of a weight does not.
    if has_xet:
        largest = max(file.stat().st_size for file in model.iterdir() if file.suffix != ".safetensors")
        said = refuse(hub, tmp_path, model, has_xet=True, max_file_bytes=max(20_000, largest + 1))
        assert "no space left on the disk; free some, or set HF_HOME to a folder on another one" in said


@pytest.mark.slow
def test_published_and_verified_with_all_libraries_talking(hub: Hub, model: Path, tmp_path: Path) -> None:
    """Installed as it is for a user, in a fresh process; no token in what is said or kept."""
    variables = {
        "HF_DEBUG": "1",
        "HF_HUB_VERBOSITY": "debug",
        "RUST_LOG": "trace",
        "HF_XET_LOG_LEVEL": "trace",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "PATH": "",
        **list_environment(hub, tmp_path, token=WRITE_TOKEN),
    }

    arguments = [[command, str(model), NAME] for command in ("publish", "verify")]
    arguments[0].append("--no-answer")
    command = [sys.executable, "-c", BOTH, json.dumps(arguments)]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    said = ran.stdout + ran.stderr
    assert f"Published (private): {hub.endpoint}/{NAME}" in ran.stdout and "The same, but" in ran.stdout, said
    assert re.findall(r"^ended with (.*)$", ran.stdout, re.MULTILINE) == ["0", "0"]
    assert "authorization: <TOKEN>" in said
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    said += "".join(path.read_text(errors="replace") for path in kept)
    assert [token for token in TOKENS if token in said] == []
