"""Recipes that are right: what comes out of the file and of overrides, and that every one we ship is complete."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.distill.settings import CacheSettings, OfflineSettings, OnPolicySettings
from seeklet.finetune.errors import RecipeError
from seeklet.finetune.evaluation.reasoning_settings import ReasoningEvaluationSettings
from seeklet.finetune.prompts.settings import PromptSettings
from seeklet.finetune.recipe import (
    EvaluationSettings,
    GrpoRecipe,
    ModelSettings,
    MoeSettings,
    OutputSettings,
    Recipe,
    RolloutSettings,
    StageRecipe,
    TrainingRecipe,
    as_yaml,
    load_recipe,
)
from seeklet.finetune.recipe.load import COMMANDS
from seeklet.finetune.recipe.trainer_fields import (
    SET_BY_SEEKLET,
    SET_BY_SEEKLET_IN,
    list_trainer_fields,
    set_by_seeklet,
)
from seeklet.finetune.rewards.settings import RewardSettings
from seeklet.finetune.rollout.settings import RejectionSamplingSettings
from seeklet.finetune.trainer_settings import FIXED
from tests.finetune.nano_checkpoints import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
# A pipeline has recipes for stages.
OF_ONE_STAGE = [file for file in RECIPES if not file.stem.startswith("pipeline_")]
SECTIONS = (
    ModelSettings,
    DataSettings,
    PromptSettings,
    RewardSettings,
    RolloutSettings,
    RejectionSamplingSettings,
    AdapterSettings,
    MoeSettings,
    EvaluationSettings,
    ReasoningEvaluationSettings,
    OnPolicySettings,
    OfflineSettings,
    CacheSettings,
    OutputSettings,
)
README = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
SHORTEST = "stage: sft\nmodel: {path: some/model}\ndata: {train: data.jsonl}\noutput: {dir: runs/x}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    (tmp_path / "r.yaml").write_text(SHORTEST)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shortest_recipe(folder: Path) -> None:
    assert load_recipe("r.yaml") == Recipe(
        stage="sft",
        model=ModelSettings(path="some/model"),
        data=DataSettings(train=("data.jsonl",)),
        adapter=None,
        moe=MoeSettings(),
        trainer={},
        evaluation=EvaluationSettings(),
        output=OutputSettings(dir="runs/x"),
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.learning_rate=1e-5", 1e-5),
        ("trainer.learning_rate=1E-5", 1e-5),
        ("trainer.learning_rate=.5", 0.5),
        ("trainer.learning_rate=1", 1.0),
        ("trainer.max_steps=0x10", 16),
        ("trainer.max_steps=010", 10),
        ("trainer.max_steps=-1", -1),
        ("trainer.bf16=true", True),
        ("trainer.bf16=null", None),
        ("trainer.bf16=", None),
        ("trainer.lr_scheduler_type=cosine", "cosine"),
        ("trainer.lr_scheduler_kwargs.num_cycles=2", {"num_cycles": 2}),
        ("trainer.report_to=[trackio, tensorboard]", ["trackio", "tensorboard"]),
        ("trainer.run_name='2024-01-01'", "2024-01-01"),
        ("trainer.run_name=2024-01-01", "2024-01-01"),
        ("trainer.run_name=no", "no"),
        ("trainer.run_name=12:30:45", "12:30:45"),
        ("trainer.run_name=a=b", "a=b"),
        ("trainer.save_strategy=epoch", "epoch"),
        ("trainer.eval_strategy=no", "no"),
    ],
)
def test_values_of_overrides(override: str, expected: object, folder: Path) -> None:
    recipe = load_recipe("r.yaml", [override])
    [value] = recipe.trainer.values()
    assert value == expected
    assert type(value) is type(expected)


def test_the_last_override_wins_and_sections_can_be_added_and_dropped(folder: Path) -> None:
    overrides = ["adapter.targets=attention", "adapter.rank=4", "adapter.rank=8", "data.validation=[v.jsonl]"]
    (folder / "v.jsonl").write_text("")
    recipe = load_recipe("r.yaml", overrides)
    assert recipe.adapter == AdapterSettings(targets=("attention",), rank=8)
    assert recipe.data.validation == ("v.jsonl",)
    assert load_recipe("r.yaml", [*overrides, "adapter=null"]).adapter is None


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(folder: Path) -> None:
    expected = load_recipe("r.yaml")
    (folder / "r.yaml").write_bytes(b"\xef\xbb\xbf" + SHORTEST.replace("\n", "\r\n").encode())
    assert load_recipe("r.yaml") == expected


def test_fields_that_seeklet_sets_are_fields_of_trl() -> None:
    """A name that TRL dropped would be refused with advice that no longer fits."""
    assert set(SET_BY_SEEKLET) <= set(list_trainer_fields("sft"))
    # What training sets whatever a recipe says, a recipe must not seem to say.
    for stage, fixed in FIXED.items():
        assert set(fixed) <= set(set_by_seeklet(stage))
    assert set_by_seeklet("sft") == SET_BY_SEEKLET
    said = set_by_seeklet("grpo")
    assert "loss_type" not in said and "packing" not in said and said["reward_weights"].startswith("belongs to rewards")
    assert set_by_seeklet("distill-topk") == SET_BY_SEEKLET
    assert set_by_seeklet("distill")["teacher_model_name_or_path"] == "belongs to teacher.path"
    for stage, changes in SET_BY_SEEKLET_IN.items():
        assert set(changes) <= set(list_trainer_fields(stage))


@pytest.mark.parametrize("file", OF_ONE_STAGE, ids=lambda file: file.stem)
def test_recipe_loads_and_its_header_is_complete(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file, (), StageRecipe)
    stage, model, data, hardware = file.stem.split("_")
    # Fine-tuning on a teacher's texts is distillation, too.
    assert recipe.stage == stage or (stage == "distill" and recipe.stage in ("sft", "distill-topk"))
    assert model.lower() in recipe.model.path.lower()
    assert recipe.output.dir == f"runs/{file.stem}"
    if isinstance(recipe, Recipe) and stage == "sft":
        names = [Path(name).stem for name in recipe.data.train]
        assert names == ([data] if data != "chat" else ["support", "summaries", "knowledge"])
    header = re.match(r"(#.*\n)+", file.read_text(encoding="utf-8"))
    assert header is not None
    for line in ("# Command:", "# Hardware:", "# Expected:"):
        assert line in header[0]
    assert f"{COMMANDS.get(stage, 'train')} recipes/{file.name}" in header[0]
    if isinstance(recipe, TrainingRecipe):
        assert ("cpu" in hardware) == bool(recipe.trainer.get("use_cpu"))


@pytest.mark.parametrize("file", OF_ONE_STAGE, ids=lambda file: file.stem)
def test_recipe_says_each_thing_by_itself(file: Path) -> None:
    """No default that may change is left to a later version: what matters to a result stands in the file."""
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    if (section := {"rollout": "sampling", "reasoning": "evaluation"}.get(written["stage"])) is not None:
        assert {"num_samples", "max_new_tokens", "temperature", "batch_size", "seed"} <= written[section].keys()
        assert {"max_tokens", "chat_template"} <= written["prompts"].keys()
        return
    on_texts = "data" in written
    own = {"num_train_epochs"} if on_texts else {"max_steps", "temperature", "beta", "max_completion_length"}
    own |= {"num_generations", "loss_type"} if written["stage"] == "grpo" else set()
    decisive = {"learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "bf16", "seed"}
    assert decisive | own <= written["trainer"].keys()
    assert {"validation", "max_tokens", "chat_template"} <= written["data" if on_texts else "prompts"].keys()


def test_readme_names_every_recipe_and_every_key() -> None:
    for file in RECIPES:
        assert f"]({file.name})" in README
    first_columns = " ".join(line.split("|")[1] for line in README.splitlines() if line.startswith("|"))
    for section in SECTIONS:
        for each in fields(section):
            assert f"`{each.name}`" in first_columns, f"{section.__name__}.{each.name}"


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_its_configuration(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    name = re.fullmatch(r"(ddp|fsdp2|fsdp2-offload|zero2|zero3)_(?:(\d+)x)?(\d+)gpu", file.stem)
    assert name is not None
    nodes, gpus = int(name[2] or 1), int(name[3])
    fsdp, deepspeed = config.fsdp_config or {}, config.deepspeed_config or {}
    if name[1] == "ddp":
        assert config.distributed_type == ("MULTI_GPU" if gpus > 1 else "NO") and not fsdp and not deepspeed
    elif name[1].startswith("fsdp2"):
        assert config.distributed_type == "FSDP" and fsdp["fsdp_version"] == 2
        assert fsdp["fsdp_offload_params"] == (name[1] == "fsdp2-offload")
    else:
        assert config.distributed_type == "DEEPSPEED" and f"zero{deepspeed['zero_stage']}" == name[1]
    assert (config.num_machines, config.num_processes) == (nodes, nodes * gpus)
    line = ["--config_file", str(file), "--main_process_ip", "localhost", "-m", "seeklet.finetune", "train", "r.yaml"]
    launched = _validate_launch_command(launch_command_parser().parse_args(line))[0]
    assert (launched.num_machines, launched.num_processes) == (nodes, nodes * gpus)
    assert (launched.use_fsdp, launched.use_deepspeed) == (name[1].startswith("fsdp2"), name[1].startswith("zero"))
    assert file.name in file.read_text(encoding="utf-8").splitlines()[0]


def test_whole_recipe_is_shown_with_its_defaults(folder: Path) -> None:
    shown = yaml.safe_load(as_yaml(load_recipe("r.yaml")))
    assert shown.keys() == {each.name for each in fields(Recipe)}
    assert shown["data"]["validation"] == 0.05
    assert shown["evaluation"]["metrics"] == ["loss"]


def test_what_sampling_needs_in_training_is_not_taken_for_its_evaluations(folder: Path) -> None:
    recipe = "stage: grpo\nmodel: {path: some/model}\nprompts: {train: data.jsonl}\nrewards: [{kind: exact}]\n"
    (folder / "r.yaml").write_text(f"{recipe}temperature: 1.0\noutput: {{dir: runs/x}}\n")
    with pytest.raises(RecipeError, match=r"^r\.yaml:5: temperature: belongs to trainer\.temperature$"):
        load_recipe("r.yaml", (), GrpoRecipe)
