"""Tasks of lm-evaluation-harness on a loaded model, where that package is installed."""

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import RecipeError
from .findings import HarnessScores

INSTALL_HINT = "pip install lm-eval"


def check_harness(tasks: Sequence[str]) -> None:
    """Check that the tasks can run.

    Raises:
        RecipeError: there are tasks and lm-evaluation-harness is not installed, or a task's file is not there.
    """
    if tasks and importlib.util.find_spec("lm_eval") is None:
        raise RecipeError(
            f"evaluation.lm_eval: {', '.join(tasks)} needs lm-evaluation-harness, which is not installed: "
            f"{INSTALL_HINT}, or leave the key out"
        )
    for task in tasks:
        if _is_file(task) and not Path(task).is_file():
            raise RecipeError(f"evaluation.lm_eval: there is no file {task}")


def run_harness(
    model: Any, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], limit: int | None, batch_size: int
) -> HarnessScores:
    """Return what the tasks measure, by task and metric: value and standard error.

    A task is a name that the harness knows, or a YAML file of one's own, named as the task it describes. Problems are
    put through the tokenizer's chat template where it has one; at most `limit` of each task.

    Raises:
        RecipeError: the harness does not know a task.
    """
    # By name, for it is no dependency: only who asks for its tasks needs it.
    lm_eval, models, task_names = map(import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks"))
    folders = [str(Path(task).parent) for task in tasks if _is_file(task)]
    names = [Path(task).stem if _is_file(task) else task for task in tasks]
    manager = task_names.TaskManager(include_path=folders or None)
    for task, name in zip(tasks, names, strict=True):
        if not manager.match_tasks([name]):
            raise RecipeError(
                f'evaluation.lm_eval: the harness knows no task "{task}"; allowed: a task that `lm-eval ls tasks` '
                "lists, or a YAML file named as the task it describes"
            )
    was_training = model.training
    model.eval()
    try:
        found = lm_eval.simple_evaluate(
            model=models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=names,
            task_manager=manager,
            limit=limit,
            apply_chat_template=tokenizer.chat_template is not None,
            log_samples=False,
        )
    finally:
        model.train(was_training)
    assert found is not None, "only processes other than the first get nothing"
    return {task: read_scores(results) for task, results in found["results"].items()}


def read_scores(results: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Return metric -> (value, standard error) from the harness's flat names: `acc,none` and `acc_stderr,none`."""
    scores = {}
    for name, value in results.items():
        metric, _, filtering = name.partition(",")
        if not filtering or metric.endswith("_stderr"):
            continue
        error = results.get(f"{metric}_stderr,{filtering}")
        label = metric if filtering == "none" else f"{metric} ({filtering})"
        # The harness writes "N/A" where it has no error.
        scores[label] = (float(value), float(error) if isinstance(error, (int, float)) else None)
    return scores


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))
