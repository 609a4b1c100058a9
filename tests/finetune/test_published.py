"""Names of this machine's folders stay on this machine."""

from pathlib import Path

import pytest

from seeklet.finetune.card import published_recipe
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.published import is_local, public_name, without_folders
from seeklet.finetune.recipe import ModelSettings
from tests.finetune.test_run_folder import make_recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "faq.csv").touch()
    return tmp_path


def test_what_is_on_this_machine(here: Path) -> None:
    local = ("model", "data/faq.csv", "./model", "../x", "/srv/models/v3", "~/models/v3")
    assert all(map(is_local, local))
    assert list(map(public_name, local)) == ["model", "faq.csv", "model", "x", "v3", "v3"]
    remote = ("gpt2", "deepseek-ai/DeepSeek-V3", "hub:owner/name:train", "x" * 5000, "a\0b")
    assert not any(map(is_local, remote)) and list(map(public_name, remote)) == list(remote)


def test_values_of_a_recipe(here: Path) -> None:
    recipe = {
        "stage": "sft",
        "model": {"path": "model", "revision": "data"},
        "data": {"train": ["data/faq.csv", "hub:owner/name"], "system": "Be brief and/or polite.", "max_tokens": 5},
        "trainer": {"run_name": "/srv/jane/x", "learning_rate": 1e-4, "seed": None},
        "output": {"dir": "jane/runs/x"},
    }
    assert without_folders(recipe) == recipe | {
        "data": {"train": ["faq.csv", "hub:owner/name"], "system": "Be brief and/or polite.", "max_tokens": 5},
        "trainer": {"run_name": "x", "learning_rate": 1e-4, "seed": None},
        "output": {"dir": "x"},
    }


def test_a_folder_of_one_part_is_no_name_on_the_hub(here: Path) -> None:
    data = DataSettings(train=("data/faq.csv",))
    published = published_recipe(make_recipe(Path("runs/x"), model=ModelSettings(path="./model"), data=data))
    assert "path: model\n" in published and "- faq.csv\n" in published and "dir: x\n" in published
