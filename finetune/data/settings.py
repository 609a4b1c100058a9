"""The `data:` section of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from ..errors import DataError

Format = Literal["auto", "messages", "prompt_completion", "sharegpt", "alpaca", "question_answer"]


@dataclass(frozen=True)
class DataSettings:
    """What to train on and what to do about what is wrong with it; the recipe's `data:` section.

    Names in `train` and `validation` are files (.jsonl, .json, .csv, .tsv, .parquet) or data sets of the Hub
    (`hub:owner/name[/config][@revision][:split]`).

    Raises:
        DataError: a value is outside what is allowed; names the field, the value and what is allowed.
    """

    train: tuple[str, ...]
    # Files of their own, or the share of `train` to hold out by content hash.
    validation: tuple[str, ...] | float = 0.05
    format: Format = "auto"
    # The file's own column for a field of the shape: {"question": "Q", "answer": "A"}.
    columns: Mapping[str, str] = field(default_factory=dict)
    # Put before every conversation that has no system message.
    system: str | None = None
    # A template shipped with seeklet by name, or a path to a .jinja file; None takes the tokenizer's own.
    chat_template: str | None = None
    max_tokens: int = 2048
    # Whether answers keep their reasoning_content; drop trains on what stands behind it alone.
    reasoning: Literal["keep", "drop"] = "keep"
    on_long: Literal["error", "skip", "truncate"] = "error"
    on_bad_row: Literal["error", "skip"] = "error"
    on_duplicate: Literal["warn", "drop", "error"] = "warn"
    scan: bool = True
    on_secret: Literal["warn", "redact", "error"] = "warn"
    assistant_only: bool = True
    packing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError("data.train is empty; allowed: at least one file or hub:owner/name")
        if isinstance(self.validation, (int, float)) and not 0 <= self.validation < 1:
            raise DataError(f"data.validation is {self.validation}; allowed: files, or a share from 0 to below 1")
        if self.max_tokens < 2:
            raise DataError(f"data.max_tokens is {self.max_tokens}; allowed: 2 or more")
        for name, hint in get_type_hints(DataSettings).items():
            # Only Literals have arguments that are values.
            if get_args(hint) and all(isinstance(value, str) for value in get_args(hint)):
                value = getattr(self, name)
                if value not in get_args(hint):
                    raise DataError(f'data.{name} is "{value}"; allowed: {", ".join(get_args(hint))}')
        if not self.scan and self.on_secret != "warn":
            raise DataError(
                f'data.scan is false, and data.on_secret is "{self.on_secret}", which takes the scan; '
                "allowed: data.scan true, or data.on_secret warn"
            )
