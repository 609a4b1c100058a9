"""The reward of reasoning-gym's tasks, by their own verifiers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..errors import RewardError
from ..limits import ABOVE_ZERO, SHARE
from .completion import Row, answer_of, read_column
from .verifier import ask


@dataclass(frozen=True)
class ReasoningGym:
    """1 where a task's own verifier gives an answer at least `least`, which is full marks unless set lower; else 0.

    The column holds the entry as reasoning-gym made it, or its JSON: with `question`, `answer` and `metadata`, in which
    `source_dataset` names the task. Its verifiers give part of the marks to an answer that merely contains the right
    one. They run in a process of their own, like those of `maths`: some evaluate what the model wrote.
    """

    column: str = "entry"
    least: Annotated[float, SHARE] = 1.0
    timeout_s: Annotated[float, ABOVE_ZERO] = 5.0

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row lacks the entry, it names no task, or the verifier raised or took too long.
        """
        entry = read_column(row, self.column)
        if isinstance(entry, str):
            try:
                entry = json.loads(entry)
            except ValueError as error:
                raise RewardError(f'"{self.column}" is no JSON: {error}') from None
        metadata = entry.get("metadata") if isinstance(entry, Mapping) else None
        if not isinstance(metadata, Mapping) or not isinstance(metadata.get("source_dataset"), str):
            raise RewardError(f'"{self.column}" is no entry of reasoning-gym: it has no metadata.source_dataset')
        answer = answer_of(completion, row)
        if not answer:
            return 0.0
        try:
            request = {"task": metadata["source_dataset"], "answer": answer, "entry": json.loads(json.dumps(entry))}
        except TypeError as error:
            raise RewardError(f'"{self.column}" holds what JSON has no words for: {error}') from None
        return float(ask("task_check", request, self.timeout_s) >= self.least)
