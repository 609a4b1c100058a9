"""The commands that take an adapter, and what they say where they cannot."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seeklet.finetune.lora.export import export_per_expert
from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.lora.merge import merge_adapter
from seeklet.modeling import SeekletForCausalLM
from tests.finetune.lora.adapters import RunHere, attached, build, saved_base
from tests.modeling.tensors import assert_same, config_of, load, read


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a folder with `base` and `adapter`."""
    base = saved_base(tmp_path / "base", build(num_nextn_predict_layers=0))
    save_adapter(attached(load(base, dtype=torch.float32), "attention", "routed_experts"), tmp_path / "adapter")
    return tmp_path


def test_merge(made: Path, run_here: RunHere) -> None:
    code, said, errors = run_here("merge", made / "adapter", "--out", made / "merged", "--dtype", "bfloat16")
    assert (code, said) == (0, f"The merged model is in {made / 'merged'}\n"), errors
    merge_adapter(made / "adapter", made / "expected", dtype=torch.bfloat16)
    assert_same(read(made / "merged"), read(made / "expected"))
    code, _, errors = run_here("merge", made / "adapter", "--out", made / "merged")
    assert (code, errors.splitlines()[-1]) == (
        2,
        f"{made / 'merged'} is not empty; allowed: a new folder, or --overwrite",
    )
    moved = made / "elsewhere"
    (made / "base").rename(moved)
    code, _, errors = run_here("merge", made / "adapter", "--out", made / "merged", "--overwrite")
    assert code == 2 and "is no folder here and not on the Hub" in errors
    run = ("merge", made / "adapter", "--out", made / "merged", "--overwrite", "--base", moved, "--fp8")
    assert run_here(*run)[0] == 0
    assert config_of(made / "merged")["quantization_config"]["quant_method"] == "fp8"
    assert type(load(made / "merged")) is SeekletForCausalLM


def test_export_adapter(made: Path, run_here: RunHere) -> None:
    out = made / "exported"
    code, said, _ = run_here("export-adapter", made / "adapter", "--out", out, "--base", made / "base")
    assert (code, said) == (0, f"The adapter for serving engines is in {out}\n")
    export_per_expert(made / "adapter", made / "expected")
    name = "adapter_model.safetensors"
    assert_same(*(load_file(folder / name) for folder in (out, made / "expected")))
    code, _, errors = run_here("export-adapter", made / "adapter", "--out", out)
    assert (code, errors.splitlines()[-1]) == (2, f"{out} is not empty; allowed: a new folder, or --overwrite")
    assert run_here("export-adapter", made / "adapter", "--out", out, "--overwrite")[0] == 0
    code, _, errors = run_here("export-adapter", made / "adapter", "--out", made / "other", "--base", "no/where")
    said = f"no/where, the base of {made / 'adapter'}, is no folder here and not on the Hub"
    assert code == 2 and errors.splitlines()[-1].startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "--out", "x"), "'nowhere' does not exist"),
        (("--out", "x"), "Missing argument"),
        ((".", "--out", "x", "--dtype", "int8"), "'int8' is not one of"),
    ],
)
def test_a_mistake_in_the_command_line(arguments: tuple[str, ...], said: str, run_here: RunHere) -> None:
    code, output, errors = run_here("merge", *arguments)
    assert (code, output) == (2, "") and said in errors
