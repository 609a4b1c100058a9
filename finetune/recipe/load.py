"""A recipe: everything one training run is told, as frozen dataclasses read from one strict YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ..adapter_settings import AdapterSettings
from ..data.settings import DataSettings
from ..limits import ABOVE_ZERO, NOT_EMPTY, NOT_NEGATIVE, POSITIVE, Pattern
from .checks import find_contradictions, find_missing_files
from .fields import FieldReader, strip_places
from .trainer_fields import CONFIG_CLASSES, MOVED, SET_BY_SEEKLET, list_trainer_fields, read_trainer
from .yaml_text import Problems, apply_overrides, find_place, read_recipe_file, write_yaml

Text = Annotated[str, NOT_EMPTY]
# A name of ours, or a function of the user's own: a dotted module, a colon, and what stands in it.
Metric = Annotated[
    str,
    Pattern(
        r"loss|exact_match|rouge|bleu|[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*",
        "loss, exact_match, rouge, bleu or a function by import path (package.module:function)",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model is trained, and how it is loaded."""

    path: Text
    """A folder, or a name on the Hub such as Qwen/Qwen2.5-1.5B-Instruct."""
    revision: Text | None = None
    """Branch, tag or commit of a model on the Hub."""
    tokenizer: Text | None = None
    """Where the tokenizer is when it is not with the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are held in; auto takes what the checkpoint says."""
    attn_implementation: Text | None = None
    """One of transformers' implementations, such as sdpa or flash_attention_2; null lets it choose."""
    device_map: Literal["auto"] | None = None
    """auto spreads the layers of one process over all GPUs, for a model too large for one and without accelerate."""
    fp8: Literal["dequantize", "keep"] = "dequantize"
    """What becomes of block-fp8 weights: expanded to `dtype`, or kept as a frozen base that only adapters train on."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the checkpoint may run on this machine."""


@dataclass(frozen=True, kw_only=True)
class MoeSettings:
    """The losses and the balancing that DeepSeek-V3-architecture models add; others have none of these."""

    mtp_loss: Literal["off", "detached", "full"] = "full"
    """Whether multi-token prediction is trained: not at all, alone, or with its gradient into the main model too."""
    mtp_loss_weight: Annotated[float, NOT_NEGATIVE] | None = None
    """Weight of the multi-token prediction loss; null takes the checkpoint's."""
    balance_loss_weight: Annotated[float, NOT_NEGATIVE] | None = None
    """Weight of the sequence-wise balance loss; null takes the checkpoint's."""
    bias_update_speed: Annotated[float, NOT_NEGATIVE] | None = None
    """How far a router bias moves per optimiser step; 0 freezes it, null takes the checkpoint's."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured on the held-out split, before and after training, and when training stops for it."""

    metrics: tuple[Metric, ...] = ("loss",)
    """loss, exact_match, rouge, bleu, or functions of your own by import path."""
    num_examples: Annotated[int, POSITIVE] = 200
    """At most this many held-out conversations are answered by generation."""
    num_samples: Annotated[int, NOT_NEGATIVE] = 10
    """Of these, how many the report shows side by side."""
    max_new_tokens: Annotated[int, POSITIVE] = 256
    """An answer is cut off after this many tokens."""
    stop: tuple[Text, ...] = ()
    """Texts that end an answer, beside the model's own end-of-sequence token."""
    batch_size: Annotated[int, POSITIVE] = 8
    """Conversations answered at a time."""
    use_mtp: bool = False
    """Whether multi-token-prediction modules draft the answers: the same answers, sooner where they guess well."""
    lm_eval: tuple[Text, ...] = ()
    """Tasks of lm-evaluation-harness that run as well, where that is installed."""
    lm_eval_limit: Annotated[int, POSITIVE] | None = None
    """At most this many problems per task of lm-evaluation-harness."""
    patience: Annotated[int, POSITIVE] | None = None
    """Training stops when this many evaluations in a row brought no better held-out loss; null never stops it."""
    min_improvement: Annotated[float, NOT_NEGATIVE] = 0.0
    """By how much the held-out loss must fall to count as better."""


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where the run writes, and what it leaves there beside checkpoints, metrics and the model card draft."""

    dir: Text
    merge: bool = False
    """Whether the adapter is merged into the model, and the whole saved too, when training is done."""
    plots: bool = True
    """Whether PNG plots of loss, learning rate and expert load are drawn."""
    max_shard_gb: Annotated[float, ABOVE_ZERO] = 5.0
    """Largest file of a saved model, in gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. `trainer` holds fields of TRL's own config class for the stage, checked by name and type."""

    stage: Literal["sft"]
    model: ModelSettings
    data: DataSettings
    adapter: AdapterSettings | None = None
    """What is trained beside the frozen model; null trains every weight."""
    moe: MoeSettings = field(default_factory=MoeSettings)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    output: OutputSettings


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file, with `dotted.key=value` overrides put in.

    Raises:
        RecipeError: anything is wrong with it; one line for each problem, with file, line, key and what is allowed.
    """
    problems = Problems()
    tree = apply_overrides(read_recipe_file(Path(path)), overrides, problems)
    given = tree.value
    assert isinstance(given, dict)
    stage = strip_places(given["stage"]) if "stage" in given else None
    known_stage = stage if isinstance(stage, str) and stage in CONFIG_CLASSES else None
    reader = FieldReader(_list_moved_keys(known_stage), problems)
    recipe = reader.read_section(Recipe, tree, "")
    trainer = read_trainer(reader, given["trainer"], known_stage) if "trainer" in given and known_stage else {}
    problems.raise_if_any()
    recipe = replace(recipe, trainer=trainer)
    for key, message in (*find_contradictions(recipe), *find_missing_files(recipe)):
        problems.add(find_place(tree, key), f"{key}: {message}")
    problems.raise_if_any()
    return recipe


def as_yaml(recipe: Recipe) -> str:
    """Return the whole recipe, defaults included, as YAML that `load_recipe` reads back as the same recipe."""
    return write_yaml(_as_plain(recipe))


def _as_plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _as_plain(item) for key, item in value.items()}
    return [_as_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _list_moved_keys(stage: str | None) -> dict[str, str]:
    """Return what to say of keys that stand in the wrong section, or that other tools and versions know."""
    sections = {
        "model": ModelSettings,
        "data": DataSettings,
        "adapter": AdapterSettings,
        "moe": MoeSettings,
        "evaluation": EvaluationSettings,
        "output": OutputSettings,
    }
    places: dict[str, list[str]] = {}
    for section, settings in sections.items():
        for each in fields(settings):
            places.setdefault(each.name, []).append(section)
    trainer = {name: f"belongs to trainer.{name}" for name in (list_trainer_fields(stage) if stage else ())}
    elsewhere = {key: f"belongs to {found[0]}.{key}" for key, found in places.items() if len(found) == 1}
    return trainer | SET_BY_SEEKLET | elsewhere | MOVED
