"""What no single key of a recipe can show: settings that contradict each other, and files that are not there."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..engines import find_engine_mistakes, find_expert_parallel_mistakes
from ..errors import DataError
from ..vllm_settings import find_vllm_mistakes
from .sections import ModelSettings, OutputSettings

if TYPE_CHECKING:
    from .stages import (
        DistillRecipe,
        ReasoningRecipe,
        Recipe,
        RolloutRecipe,
        StageRecipe,
        TopKRecipe,
        TrainingRecipe,
    )

HUB_NAME = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
# The cache of a teacher's tokens in output.dir, where cache.dir is null.
CACHE = "teacher_topk"
# Begins the name of a data set that is not a file.
HUB_DATA = "hub:"


def find_contradictions(recipe: "StageRecipe") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, what is wrong) of everything that cannot be meant together."""
    if isinstance(recipe.output, OutputSettings):
        yield from _find_training_contradictions(cast("TrainingRecipe", recipe))
    else:
        yield from _find_sampling_contradictions(cast("RolloutRecipe | ReasoningRecipe", recipe))
    if not getattr(recipe, "rewards", True):
        yield "rewards", "is empty; at least one is needed"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for key in ("model", "teacher"):
        if processes > 1 and getattr(getattr(recipe, key, None), "device_map", None):
            advice = (
                "start one (accelerate launch --num_processes 1), or set it to null and let them share the model (FSDP)"
            )
            yield (
                f"{key}.device_map",
                f"auto lays one process's model out over all GPUs, and here are {processes}; {advice}",
            )
    for key, names in _lists_of_names(recipe):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            yield key, f"{twice[0]} is there twice"


def _find_training_contradictions(recipe: "TrainingRecipe") -> Iterator[tuple[str, str]]:
    yield from _find_adapter_contradictions(recipe)
    yield from _find_output_contradictions(recipe.output)
    model = recipe.model
    yield from find_engine_mistakes(model.quantization)
    yield from find_expert_parallel_mistakes(recipe.trainer, model.quantization, model.device_map)
    yield from _find_trainer_contradictions(recipe)
    if recipe.moe.mtp_loss == "off" and recipe.moe.mtp_loss_weight:
        yield "moe.mtp_loss_weight", "given, but moe.mtp_loss is off; leave one of them out"
    section = _section_with_files(recipe)
    given = getattr(recipe, section)
    if not given.validation and _evaluates(recipe):
        yield "trainer.eval_strategy", f"nothing is held out to evaluate on; set {section}.validation"
    if both := _in_both(given):
        learnt = "so it would measure what was learnt by heart"
        yield f"{section}.validation", f"{both} is in {section}.train too, {learnt}"
    if recipe.stage == "sft":
        yield from _find_sft_contradictions(cast("Recipe", recipe))
    elif recipe.stage == "grpo":
        yield from find_vllm_mistakes(recipe)
    elif recipe.stage == "distill":
        yield from _find_distill_contradictions(cast("DistillRecipe", recipe))


def _in_both(given: Any) -> str:
    """Return a file that is trained on and held out, or nothing."""
    return min(set(given.validation) & set(given.train), default="") if isinstance(given.validation, tuple) else ""


def _find_sampling_contradictions(recipe: "RolloutRecipe | ReasoningRecipe") -> Iterator[tuple[str, str]]:
    """Yield what rollouts and evaluations of reasoning cannot mean: both read prompts, and neither trains on them."""
    prompts, is_rollout = recipe.prompts, recipe.stage == "rollout"
    section, settings = (
        ("sampling", cast("RolloutRecipe", recipe).sampling)
        if is_rollout
        else ("evaluation", cast("ReasoningRecipe", recipe).evaluation)
    )
    if is_rollout and (both := _in_both(prompts)):
        yield "prompts.validation", f"{both} is in prompts.train too, and what is held out is not sampled"
    if settings.chat_template and prompts.chat_template and settings.chat_template != prompts.chat_template:
        yield f"{section}.chat_template", f"prompts.chat_template is {prompts.chat_template}; leave one of them out"
    if is_rollout:
        yield from _find_rollout_contradictions(cast("RolloutRecipe", recipe))


def _find_rollout_contradictions(recipe: "RolloutRecipe") -> Iterator[tuple[str, str]]:
    sampling, names = recipe.sampling, [reward.name or reward.kind for reward in recipe.rewards]
    if both := set(sampling.evaluation_sets) & set(recipe.prompts.train):
        yield "sampling.evaluation_sets", f"{min(both)} is in prompts.train too, and none of its prompts would be left"
    if unknown := [name for name in sampling.min_rewards if name not in names]:
        yield "sampling.min_rewards", f'there is no reward "{unknown[0]}"; allowed: {", ".join(names)}'
    if sampling.min_tokens > sampling.max_new_tokens:
        yield (
            "sampling.min_tokens",
            f"is {sampling.min_tokens}, and attempts end at sampling.max_new_tokens, {sampling.max_new_tokens}",
        )


def _section_with_files(recipe: "StageRecipe") -> str:
    return "data" if hasattr(recipe, "data") else "prompts"


def _lists_of_names(recipe: "StageRecipe") -> list[tuple[str, tuple[str, ...]]]:
    section = _section_with_files(recipe)
    lists = [(f"{section}.train", getattr(recipe, section).train)]
    if recipe.stage == "sft":
        lists.append(("evaluation.metrics", cast("Recipe", recipe).evaluation.metrics))
    return lists


def _find_adapter_contradictions(recipe: "TrainingRecipe") -> Iterator[tuple[str, str]]:
    quantization = recipe.model.quantization
    if quantization and recipe.model.fp8 == "keep":
        yield "model.quantization", f"is {quantization}, and model.fp8 is keep; weights are held in one or the other"
    if recipe.model.double_quantization and quantization not in ("nf4", "fp4"):
        held = quantization or "null"
        yield "model.double_quantization", f"is true, and model.quantization is {held}; it is for nf4 and fp4"
    if recipe.adapter is not None:
        return
    if quantization:
        yield (
            "model.quantization",
            f"{quantization} freezes the weights, and without an adapter nothing is left to train; add one",
        )
    if recipe.model.fp8 == "keep":
        yield "model.fp8", "keep freezes the weights, and without an adapter nothing is left to train; add one"
    if recipe.output.merge:
        yield "output.merge", "there is no adapter to merge; without one the whole model is saved anyway"


def _find_output_contradictions(output: OutputSettings) -> Iterator[tuple[str, str]]:
    if output.merge_dtype != "auto" and not output.merge:
        yield "output.merge_dtype", f"{output.merge_dtype} has no effect without output.merge: true"


def _find_trainer_contradictions(recipe: "TrainingRecipe") -> Iterator[tuple[str, str]]:
    trainer = recipe.trainer
    if trainer.get("bf16") and trainer.get("fp16"):
        yield "trainer.fp16", "bf16 is true too; choose one"
    if trainer.get("save_strategy") == "best" and not _evaluates(recipe):
        yield (
            "trainer.save_strategy",
            "best needs evaluations while training; set trainer.eval_strategy to steps or epoch",
        )
    if trainer.get("load_best_model_at_end"):
        strategies = (trainer.get("eval_strategy", "no"), trainer.get("save_strategy", "steps"))
        if strategies[0] == "no" or strategies[0] != strategies[1]:
            shown = " and ".join(strategies)
            yield (
                "trainer.load_best_model_at_end",
                f"needs the same eval_strategy and save_strategy, steps or epoch; they are {shown}",
            )


def _evaluates(recipe: "TrainingRecipe") -> bool:
    return recipe.trainer.get("eval_strategy", "no") != "no"


def _find_sft_contradictions(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    evaluation = recipe.evaluation
    if evaluation.patience is not None and not _evaluates(recipe):
        yield "evaluation.patience", "needs evaluations while training; set trainer.eval_strategy to steps or epoch"
    if evaluation.min_improvement and evaluation.patience is None:
        yield "evaluation.min_improvement", "has no effect without evaluation.patience"
    if evaluation.lm_eval_limit is not None and not evaluation.lm_eval:
        yield "evaluation.lm_eval_limit", "has no effect without evaluation.lm_eval"


def _find_distill_contradictions(recipe: "DistillRecipe") -> Iterator[tuple[str, str]]:
    yield from find_vllm_mistakes(recipe)
    trainer, settings = recipe.trainer, recipe.distillation
    if settings.alignment == "text" and trainer.get("beta", 1) != 1:
        yield (
            "trainer.beta",
            f"is {trainer['beta']:g}, but distillation.alignment is text, which compares no whole vocabularies; "
            "allowed: 1",
        )


def find_missing_files(recipe: "StageRecipe", to_come: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, what is wrong) of files and folders that the recipe names; relative to the current folder.

    What is in `to_come` need not be there yet.
    """
    for key, names in _lists_of_files(recipe):
        for name in names:
            if (
                not name.startswith(HUB_DATA)
                and name not in to_come
                and (wrong := _say_unreadable(Path(name).expanduser()))
            ):
                yield key, f"{name}: {wrong}"
    teacher: ModelSettings | None = getattr(recipe, "teacher", None)
    # Only where weights are trained must they be whole: elsewhere an adapter stands for itself on its base.
    trains = isinstance(recipe.output, OutputSettings)
    for key, model, adapters in (("model", recipe.model, not trains), ("teacher", teacher, True)):
        if model is None or (key == "teacher" and _needs_no_teacher(recipe, to_come)):
            continue
        if model.path not in to_come and (wrong := _say_no_model(model.path, adapters)):
            yield f"{key}.path", f"{model.path}: {wrong}"
    if recipe.stage == "distill-topk" and teacher is None and not _needs_no_teacher(recipe, to_come):
        cache = _cache_of(cast("TopKRecipe", recipe))
        yield "teacher", f"is null, and {cache} holds no whole cache of a teacher's tokens; name one of the two"
    for model in (recipe.model, teacher):
        if model is not None and (wrong := _say_no_output(recipe.output.dir, model.path)):
            yield "output.dir", f"{recipe.output.dir}: {wrong}"
            break


def _cache_of(recipe: "TopKRecipe") -> str:
    return recipe.cache.dir or os.path.join(recipe.output.dir, CACHE)


def _needs_no_teacher(recipe: "StageRecipe", to_come: Collection[str]) -> bool:
    """Return whether all that a teacher would say is on disk, or will be."""
    if recipe.stage != "distill-topk":
        return False
    cache = _cache_of(cast("TopKRecipe", recipe))
    return cache in to_come or _is_whole(Path(cache).expanduser())


def _is_whole(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    # It imports torch, which most recipes are read without.
    from ..distill.topk_files import is_whole

    try:
        return is_whole(folder)
    except DataError:
        # The run itself says what is wrong with it.
        return True


def _lists_of_files(recipe: "StageRecipe") -> Iterator[tuple[str, tuple[str, ...]]]:
    section = _section_with_files(recipe)
    given: Any = getattr(recipe, section)
    yield f"{section}.train", given.train
    yield f"{section}.validation", given.validation if isinstance(given.validation, tuple) else ()
    if recipe.stage == "rollout":
        yield "sampling.evaluation_sets", cast("RolloutRecipe", recipe).sampling.evaluation_sets


def _say_unreadable(file: Path) -> str:
    """Return why a data file cannot be read, or nothing."""
    try:
        if file.is_dir():
            return "is a folder; name the files in it"
        with file.open("rb"):
            return ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return reason if file.is_absolute() else f"{reason} (relative to the current folder, {Path.cwd()})"


def _say_no_model(path: str, adapters: bool = False) -> str:
    """Return why a path is neither a model's folder nor a name on the Hub, or nothing; `adapters` will do as well."""
    folder = Path(path).expanduser()
    if _exists(path):
        if not folder.is_dir():
            return "is a file; expected the folder of a model, or its name on the Hub"
        is_adapter = (folder / "adapter_config.json").is_file()
        if (folder / "config.json").is_file() or (adapters and is_adapter):
            return ""
        if is_adapter:
            return f"is an adapter; to train on from it, merge it first: seeklet merge {path} --out FOLDER"
        return "holds no config.json, so no model" + (", and no adapter (adapter_config.json)" if adapters else "")
    if path.startswith((".", "~", os.sep)) or not re.fullmatch(HUB_NAME, path):
        return "no such folder, and no name on the Hub (owner/name)"
    return ""


def _say_no_output(path: str, model: str) -> str:
    """Return why a run cannot write to a folder, or nothing."""
    folder = Path(path).expanduser()
    try:
        if _exists(model) and folder.exists() and folder.samefile(Path(model).expanduser()):
            return "is the folder of the model itself"
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    except (OSError, ValueError) as error:
        return str(error.strerror or error) if isinstance(error, OSError) else str(error)
    if not there.is_dir():
        return "is a file, not a folder" if there == folder else f"{there} is a file, not a folder"
    return "" if os.access(there, os.W_OK) else f"{there} may not be written"


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))
