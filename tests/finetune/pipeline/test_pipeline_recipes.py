"""Every pipeline that comes with seeklet, two steps a stage, on nano models of its own architectures."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from seeklet.finetune.pipeline import Pipeline, load_pipeline, run_pipeline
from seeklet.finetune.pipeline.dry_run import show_pipeline
from seeklet.finetune.recipe import TrainingRecipe
from tests.finetune.nano_checkpoints import ROOT, build_checkpoint, make_block_fp8
from tests.finetune.pipeline.nano import write_rows
from tests.finetune.sft_runs import write_data

PIPELINES = sorted((ROOT / "recipes").glob("pipeline_*.yaml"))
# What a machine without a GPU, a network and vLLM cannot do as the pipelines say; and small batches.
TRAINER = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "logging_steps": 1,
    "learning_rate": 1e-3,
}
SAMPLED = {
    "grpo": {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "use_vllm": False},
    "distill": {"max_completion_length": 6},
}


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_it_says_what_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    pipeline = load_pipeline(file)
    assert pipeline.folder == Path("runs") / file.stem and pipeline.evaluation is not None
    header = file.read_text(encoding="utf-8").partition("\noutput:")[0]
    assert f"# Command:   seeklet run recipes/{file.name}\n" in header and "# Expected:  not yet run" in header
    evaluated = set(pipeline.evaluation.prompts.train)
    for stage in pipeline.stages:
        recipe: Any = stage.recipe
        trained_on = {*getattr(getattr(recipe, "data", None) or recipe.prompts, "train")}  # noqa: B009
        assert not evaluated & trained_on, f"{stage.name} learns what is measured"
        if stage.kind == "rollout":
            assert evaluated <= set(recipe.sampling.evaluation_sets)


@pytest.mark.slow
@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_two_steps_of_each_stage(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    small = tmp_path / file.name
    given = shrink(yaml.safe_load(file.read_text()), load_pipeline(file), tmp_path)
    small.write_text(yaml.safe_dump(given, sort_keys=False))
    console = Console(file=io.StringIO(), width=200)
    show_pipeline(load_pipeline(small), console)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "nothing was run, and nothing written" in said and not (tmp_path / "run").exists()
    assert said.count(" is made by ") == sum(len(stage.references) for stage in load_pipeline(small).stages)
    result = run_pipeline(small)
    assert result.before is not None and len(result.stages) == len(load_pipeline(file).stages)
    for stage, done in zip(load_pipeline(small).stages, result.stages, strict=True):
        assert done.product.exists() and not done.skipped
        if isinstance(stage.recipe, TrainingRecipe):
            assert done.evaluation is not None
            entries = [json.loads(line) for line in (stage.folder / "metrics.jsonl").read_text().splitlines()]
            steps = [entry for entry in entries if "loss" in entry]
            assert [entry["step"] for entry in steps] == [1, 2]
            assert all(math.isfinite(entry["loss"]) for entry in steps)
            if stage.recipe.model.fp8 == "keep" and stage.recipe.output.merge:
                assert "quantization_config" in json.loads((stage.product / "config.json").read_text())
        else:
            assert done.product.read_text().strip()
    report = result.report.read_text()
    assert f"All {len(result.stages)} stages are done." in report and str(tmp_path) not in report
    kept = [
        stage
        for stage in load_pipeline(small).stages
        if stage.recipe.model.fp8 == "keep" and stage.recipe.stage == "sft"
    ]
    for stage in kept:
        assert "quantization_config" in json.loads((stage.product / "config.json").read_text()), "fp8 as its base"


def shrink(given: dict[str, Any], pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """Return the file's content with nano models, a few rows and two steps, all in this process."""
    data = str(write_data(folder / "data.jsonl", 8))
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(8)]
    prompts = str(write_rows(folder / "problems.jsonl", rows))
    held_out = str(write_rows(folder / "held_out.jsonl", [{"problem": "100+1?", "answer": "101"}]))
    given |= {"output": {"dir": str(folder / "run")}, "launch": []}
    given["evaluation"] |= {"max_new_tokens": 4, "num_samples": 2}
    given["evaluation"]["prompts"]["train"] = held_out
    models: dict[str, str] = {}
    for stage in pipeline.stages:
        own = given["stages"][stage.name]
        own.pop("launch", None)
        for key in ("model", "teacher"):
            if key in own:
                own[key] |= {"dtype": "float32", "device_map": None}
                if not own[key]["path"].startswith("{"):
                    name = own[key]["path"]
                    models[name] = models.get(name) or build(own[key], folder / f"model{len(models)}")
                    own[key]["path"] = models[name]
        for section, file in (("data", data), ("prompts", prompts)):
            if section in own:
                train = own[section]["train"]
                kept = [name for name in ([train] if isinstance(train, str) else train) if name.startswith("{")]
                own[section] |= {"train": [*kept, file], "validation": 0.0}
        if "trainer" in own:
            ours = TRAINER | SAMPLED.get(stage.kind, {})
            left_out = ("num_train_epochs", "eval_strategy", "save_strategy", "sync_ref_model")
            kept = {key: value for key, value in own["trainer"].items() if key not in left_out}
            own["trainer"] = {**kept, **ours}
        if "sampling" in own:
            own["sampling"] |= {
                **{"threshold": -1, "requires_format": False, "requires_reasoning": False, "max_foreign_share": 1.0},
                **{"num_samples": 4, "max_new_tokens": 24, "evaluation_sets": [held_out]},
            }
    return given


def build(model: dict[str, Any], folder: Path) -> str:
    """Return a nano checkpoint whose samples end soon: every fourth token ends them."""
    build_checkpoint(model["path"], folder)
    config = json.loads((folder / "config.json").read_text())
    ends = list(range(0, config["vocab_size"], 4))
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": ends}))
    if model.get("fp8") == "keep":
        make_block_fp8(folder)
    return str(folder)
