"""The teacher of a recipe: loaded frozen from a folder, an adapter's folder or the Hub, its errors named after it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.template import choose_template, served_template
from ..errors import DataError, RecipeError
from ..evaluation.models import Weights, find_weights, load_tokenizer
from ..lora.files import load_adapter
from ..meta_model import build_meta_model, load_config
from ..read_once import read_by_all
from ..recipe import ModelSettings
from ..training_model import load_for_training
from .vocabulary import shared_vocabulary


def load_teacher(settings: ModelSettings) -> PreTrainedModel:
    """Return the teacher in evaluation mode and frozen, on the CPU unless `device_map` places it.

    Raises:
        RecipeError: it cannot be loaded as the settings say.
        AdapterError: it is an adapter that is damaged, or that does not fit its model.
        CheckpointError: its files are damaged.
    """
    base, adapter = find_teacher(settings)
    # Each process needs all of it: it is not sharded.
    with _named_teacher(), read_by_all():
        model = load_for_training(base)
    if adapter is not None:
        # The model itself, its layers adapted.
        model = load_adapter(model, adapter).get_base_model()
    return model.eval().requires_grad_(False)  # pyright: ignore[reportReturnType]


def load_teacher_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Return the teacher's own tokenizer.

    Raises:
        RecipeError: there is none.
        AdapterError: the teacher is an adapter that cannot be read.
    """
    base, _ = find_teacher(settings)
    with _named_teacher():
        return load_tokenizer(base)


def build_meta_teacher(settings: ModelSettings) -> PreTrainedModel:
    """Return the teacher on the meta device, without its adapter, in the dtypes it would be held in.

    Raises:
        RecipeError: there is no such model, or it cannot be loaded as the settings say.
        AdapterError: it is an adapter that cannot be read.
    """
    base, _ = find_teacher(settings)
    with _named_teacher():
        return build_meta_model(base)


def find_teacher(settings: ModelSettings) -> Weights:
    """Return what is to be loaded, and the folder of the adapter that belongs on it, or None.

    Raises:
        RecipeError: the settings name an adapter whose model is not there.
        AdapterError: they name one that cannot be read.
    """
    with _named_teacher():
        return find_weights(settings)


def check_vocabularies(
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    teacher: ModelSettings,
    teacher_tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Return how many logits mean the same to both, from their configs: no weight is read.

    Raises:
        RecipeError: their tokens differ.
        AdapterError: as `find_teacher`.
    """
    with _named_teacher():
        theirs = load_config(find_teacher(teacher)[0])
    sizes = [config.get_text_config().vocab_size for config in (load_config(model), theirs)]
    return shared_vocabulary(tokenizer, teacher_tokenizer, *sizes)


def set_teacher_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a teacher has a chat template to read the prompts with, and that it runs.

    Raises:
        RecipeError: it has none, or it does not.
    """
    try:
        tokenizer.chat_template = served_template(choose_template(tokenizer, None, assistant_only=False))
    except DataError as error:
        raise RecipeError(
            f"teacher.path: {tokenizer.name_or_path}: no chat template of the teacher's can be used, and with "
            f"distillation.alignment: text it reads the prompts with its own ({str(error).splitlines()[0]})"
        ) from error


@contextmanager
def _named_teacher() -> Iterator[None]:
    """Say `teacher` where an error says `model`, which is the section of the student."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(re.sub(r"^model(?=[.:])", "teacher", str(error))) from error
