"""The `prompts:` section of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ..errors import DataError
from ..limits import POSITIVE, Range, Text


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """What a model is asked while it learns from rewards."""

    train: tuple[Text, ...] = ()
    """Files (.jsonl, .json, .csv, .tsv, .parquet) or data sets of the Hub (hub:owner/name): one question a row."""
    gym: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tasks of reasoning-gym by name, each with its own settings ({} for none); `size` problems are drawn of each."""
    size: Annotated[int, POSITIVE] = 1000
    """Problems drawn of each task of `gym`."""
    validation: tuple[Text, ...] | Annotated[float, Range(least=0, below=1)] = 0.0
    """Files of their own, or the share that is held out by the content of the question."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The file's own names for `prompt` and `answer`, where not the usual ones: {prompt: Frage, answer: Antwort}."""
    system: Text | None = None
    """Put before every prompt that has no system message."""
    chat_template: Text | None = None
    """A template shipped with seeklet by name, or a path to a .jinja file; null takes the tokenizer's own."""
    max_tokens: Annotated[int, POSITIVE] = 1024
    """The longest prompt."""
    on_long: str = "error"
    """What becomes of longer ones: error or skip."""
    seed: Annotated[int, Range(least=0, below=2**31)] = 0
    """Which problems are drawn of the tasks of `gym`."""

    def __post_init__(self) -> None:
        if not self.train and not self.gym:
            raise DataError("prompts has neither train nor gym; allowed: files or hub:owner/name, or tasks of gym")
        if self.on_long not in ("error", "skip"):
            raise DataError(f'prompts.on_long is "{self.on_long}"; allowed: error, skip')
        if unknown := [name for name in self.columns if name not in ("prompt", "answer")]:
            raise DataError(f'prompts.columns has "{unknown[0]}"; allowed: prompt, answer')
