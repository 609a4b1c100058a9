"""The rows of the dataset: conversations that training reads, each with where it comes from."""

from dataclasses import asdict, dataclass
from typing import Any

from ..attempts import Attempt
from ..data.rows import Source
from ..prompts.read import Prompt
from ..published import public_name
from ..reasoning import parse
from .settings import RejectionSamplingSettings


@dataclass(frozen=True)
class Origin:
    """The model that samples; of a folder of this machine, its last part is written."""

    model: str
    revision: str | None = None
    weights: str | None = None
    """A fingerprint of its weights, by which a model that was trained further is told apart."""


def make_row(
    prompt: Prompt,
    attempt: Attempt,
    sample: int,
    share_right: float,
    origin: Origin,
    settings: RejectionSamplingSettings,
) -> dict[str, Any]:
    """Return a row: `messages`, of which the last has its reasoning apart, and their `provenance`."""
    reasoning, answer = parse(attempt.text)
    said = {"role": "assistant", "content": answer}
    if reasoning:
        said["reasoning_content"] = reasoning
    row: dict[str, Any] = {"messages": [*prompt.messages, said]}
    columns = dict(prompt.columns)
    if (tools := columns.pop("tools", None)) is not None:
        row["tools"] = tools
    row["provenance"] = {
        **asdict(origin),
        "seed": settings.seed,
        "sampling": asdict(settings.sampling),
        "num_samples": settings.num_samples,
        "prompt": public_source(prompt.source),
        "columns": columns,
        "sample": sample,
        "reward": attempt.reward,
        "rewards": dict(attempt.rewards),
        "share_right": share_right,
        "num_tokens": attempt.num_tokens,
    }
    return row


def public_source(source: Source) -> str:
    """Return where a prompt stands, without the folder its file is in.

    >>> public_source(Source("/data/problems.jsonl", 3))
    'problems.jsonl:3'
    """
    return str(source._replace(file=public_name(source.file)))
