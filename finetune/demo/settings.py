"""What a run of the demo is told, and the pipeline that follows from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..recipe.yaml_text import write_yaml

PIPELINE = "pipeline.yaml"
# Problems in each data file.
SIZES = {"cold_start": 16_000, "prompts": 2_000, "rollout": 8_192, "test": 256}
QUICK_SIZES = {"cold_start": 64, "prompts": 16, "rollout": 24, "test": 8}
_QUICK_STEPS = {"max_steps": 3, "logging_steps": 1, "save_steps": 1, "warmup_steps": 1}
_QUICK_SAMPLES = {**_QUICK_STEPS, "per_device_train_batch_size": 8, "max_completion_length": 12}
# It writes tokens of the chat's structure, too, which nobody may be trained on.
_QUICK_DATA = {"on_bad_row": "skip"}
# Every stage, a few steps of it. A model that has learned nothing is hardly ever right, so all that ends is kept.
QUICK: Mapping[str, Mapping[str, Any]] = {
    "evaluation": {"max_new_tokens": 12},
    "stages.cold_start.trainer": _QUICK_STEPS,
    "stages.grpo.trainer": {**_QUICK_SAMPLES, "num_generations": 4},
    "stages.rollout.sampling": {
        "max_new_tokens": 64,
        "temperature": 1.0,
        "threshold": -1.0,
        "requires_format": False,
        "requires_reasoning": False,
    },
    "stages.student_on_answers.data": _QUICK_DATA,
    "stages.student_on_answers.trainer": _QUICK_STEPS,
    "stages.student_on_traces.data": _QUICK_DATA,
    "stages.student_on_traces.trainer": _QUICK_STEPS,
    "stages.on_policy.trainer": _QUICK_SAMPLES,
}


@dataclass(frozen=True)
class DemoSettings:
    """What the command line can set; with others, the demo begins anew."""

    seed: int = 0
    # On two cores that other programs used too, a training step took 0.17 to 0.20 s with one thread and, with two, 1.0
    # to 1.6 s: threads that wait for each other at each of thousands of tiny matrices.
    threads: int = 1
    quick: bool = False
    """Whether the whole way is gone in a few steps a stage, and nothing is learned."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Problems in each data file, by the file's name."""
        return QUICK_SIZES if self.quick else SIZES


def write_pipeline(settings: DemoSettings, folder: Path) -> str:
    """Return the text of the pipeline that works in `folder`, an absolute path."""
    text = Path(__file__).with_name(PIPELINE).read_text(encoding="utf-8").replace("SEED", str(settings.seed))
    # As within the quotes of YAML, which are those of JSON.
    text = text.replace("FOLDER", json.dumps(str(folder), ensure_ascii=False)[1:-1])
    if not settings.quick:
        return text
    tree = yaml.safe_load(text)
    for path, values in QUICK.items():
        section = tree
        for key in path.split("."):
            section = section[key]
        section.update(values)
    return "# What `make demo` carries out, in a few steps that teach nothing (--quick).\n" + write_yaml(tree)
