"""What a recipe's trainer section becomes, and what is refused before a model is loaded."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.trainer_settings import (
    DECISIVE,
    check_validation,
    complete,
    default_settings,
    make_sft_config,
)
from tests.finetune.test_run_folder import make_recipe


def make(tmp_path: Path, **trainer: Any) -> Any:
    return make_sft_config(make_recipe(tmp_path / "run", trainer=trainer), tmp_path / "checkpoints")


def test_defaults_fit_a_cpu_and_hide_nothing(tmp_path: Path) -> None:
    config = make(tmp_path, use_cpu=True)
    assert not config.bf16 and not config.fp16 and not config.gradient_checkpointing
    assert not config.logging_nan_inf_filter and config.disable_tqdm
    assert config.output_dir == str(tmp_path / "checkpoints") and config.save_total_limit == 2
    assert config.max_length is None and not config.packing and not config.assistant_only_loss
    assert config.run_name == "run"
    assert config.report_to == (["trackio"] if find_spec("trackio") else [])


def test_defaults_fit_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    settings = default_settings(make_recipe(tmp_path, trainer={}))
    assert settings["bf16"] and settings["gradient_checkpointing"] and settings["dataloader_pin_memory"]
    assert settings["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert not default_settings(make_recipe(tmp_path, trainer={"fp16": True}))["bf16"]


def test_the_recipe_has_the_last_word(tmp_path: Path) -> None:
    chosen = {"gradient_checkpointing": True, "bf16": True, "use_cpu": True, "save_total_limit": 7, "run_name": "mine"}
    config = make(tmp_path, **chosen, learning_rate=3e-5, report_to="none")
    assert {name: getattr(config, name) for name in chosen} == chosen
    assert config.learning_rate == 3e-5 and config.report_to == []
    assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_a_complete_recipe_says_what_it_left_to_others(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "run", trainer={"learning_rate": 3, "use_cpu": True, "eval_strategy": "epoch"})
    config = make_sft_config(recipe, tmp_path)
    whole = complete(recipe, config)
    assert whole.trainer.keys() == set(DECISIVE)
    said = {"learning_rate": 3, "eval_strategy": "epoch", "lr_scheduler_type": "linear", "report_to": "none"}
    assert whole.trainer.items() >= (said | {"max_grad_norm": 1.0, "bf16": False, "save_total_limit": 2}).items()
    again = make_sft_config(whole, tmp_path)
    assert {**again.to_dict(), "logging_dir": ""} == {**config.to_dict(), "logging_dir": ""}
    assert complete(whole, again) == whole


@pytest.mark.parametrize(
    ("trainer", "best"),
    [
        ({}, False),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, True),
        ({"eval_strategy": "epoch"}, False),
        ({"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}, True),
        ({"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10}, False),
        ({"eval_strategy": "steps", "eval_steps": 5}, False),
        ({"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": False}, False),
    ],
)
def test_the_best_model_is_the_result_where_every_evaluated_step_is_saved(
    tmp_path: Path, trainer: dict[str, Any], best: bool
) -> None:
    config = make(tmp_path, use_cpu=True, **trainer)
    assert config.load_best_model_at_end is best
    assert config.metric_for_best_model == ("loss" if best else None)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"label_smoothing_factor": 0.1}, r"trainer\.label_smoothing_factor is 0\.1; allowed: 0"),
        ({"logging_nan_inf_filter": True}, "a loss that is no number must show"),
        ({"report_to": "clearml"}, r"trainer\.report_to is clearml, which is not installed; allowed here: none"),
        ({"report_to": ["none", "pigeon"]}, r"trainer\.report_to is pigeon; allowed: none, azure_ml, "),
        ({"accelerator_config": {"a": 1}}, r"^trainer: AcceleratorConfig.* unexpected keyword argument 'a'$"),
        (
            {"dataloader_persistent_workers": True},
            r"_workers is True, .*; set trainer\.dataloader_num_workers",
        ),
        (
            {"activation_offloading": True, "use_cpu": True},
            r"offloading is true, .*; allowed on a CPU: false",
        ),
        ({"ddp_backend": "gloo"}, r"ddp_backend is gloo, but no accelerate launch started this process"),
        # What transformers finds by itself, in the words of the recipe.
        ({"save_steps": 2.5, "use_cpu": True}, r"^trainer: --save_steps must be an integer if bigger than 1: 2\.5$"),
        ({"optim": "grokadamw"}, r"^trainer\.optim is grokadamw, which cannot be made: Please install grokadamw"),
        (
            {"optim": "schedule_free_sgd"},
            r"^trainer\.optim is schedule_free_sgd, which is not installed: .*schedulefree",
        ),
        ({"optim": "lomo"}, r"^trainer\.optim is lomo; allowed: optimizers whose whole state is in the checkpoints"),
        ({"optim_args": "fast"}, r"^trainer\.optim is adamw_torch_fused with optim_args fast, which cannot be made"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            r"^trainer\.lr_scheduler_type is cosine_with_min_lr with lr_scheduler_kwargs not set, .*: One of min_lr or",
        ),
        (
            {"lr_scheduler_kwargs": {"cycles": 2}},
            r"lr_scheduler_type is linear with lr_scheduler_kwargs \{'cycles': 2\}, .*unexpected keyword",
        ),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "use_cpu": True}, "^trainer: .*requires an eval strategy$"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(tmp_path, **trainer)


def test_evaluation_needs_something_held_out(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, trainer={"eval_strategy": "epoch"})
    message = r"trainer\.eval_strategy is epoch, but nothing was held out; set data\.validation"
    with pytest.raises(RecipeError, match=message):
        check_validation(recipe, 0)
    check_validation(recipe, 1)
    check_validation(make_recipe(tmp_path), 0)
