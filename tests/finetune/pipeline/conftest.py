"""A pipeline that nothing has interrupted, once for all tests of this folder, and copies of it to be changed."""

import json
import subprocess
from pathlib import Path

import pytest

from seeklet.finetune.pipeline import manifest as manifests
from tests.finetune.pipeline.killed import run_killed
from tests.finetune.pipeline.nano import evaluation, write_pipeline


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a pipeline that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run_killed(write_pipeline(folder, evaluation=evaluation(folder)), False, "never")
    return folder / "run"


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    """Return the file of a pipeline that is done, in a folder of its own: a moved one goes on."""
    path = write_pipeline(tmp_path, evaluation=evaluation(tmp_path))
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "run")], check=True)
    text = (tmp_path / "run" / "manifest.json").read_text()
    # The model and the data that the user named are where they were.
    (tmp_path / "run" / "manifest.json").write_text(_moved(text, whole.parent, tmp_path))
    return path


def _moved(text: str, before: Path, after: Path) -> str:
    manifest = json.loads(text.replace(str(before), str(after)))
    for record in manifest["stages"]:
        record["recipe_sha256"] = manifests.hash_recipe(record["recipe"])
    return json.dumps(manifest)
