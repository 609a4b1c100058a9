"""The attempts made so far, in a file that is only ever added to: what a killed rollout goes on from."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..attempts import Attempt
from ..errors import DataError, RecipeError, TrainingError


class AttemptFile:
    """A first line that says what is sampled how, then a line for each prompt with all its attempts.

    Only where the lines stand is held in memory.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        """Name the file, and what its first line must say."""
        self.path = path
        # As it comes back from JSON.
        self._header = json.loads(json.dumps(header))
        self._offsets: dict[int, int] = {}
        self._stream: Any = None

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    @contextmanager
    def opened(self) -> Iterator["AttemptFile"]:
        """Keep the file to this process while the block runs; a last line that was cut short is taken off.

        Raises:
            RecipeError: it holds attempts of another rollout.
            DataError: a line is damaged.
            TrainingError: another process has it.
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as self._stream:
            try:
                # Of the open file, so that it is gone with the process, however that ends.
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(f"another process samples into {self.path}; wait for it, or stop it") from None
            end = self._scan()
            self._stream.truncate(end)
            if not end:
                self._write(_line(self._header))
            yield self

    @contextmanager
    def reading(self) -> Iterator["AttemptFile"]:
        """Give the file as it is, which another process may be adding to.

        Raises:
            RecipeError: it holds attempts of another rollout.
            DataError: a line is damaged.
            OSError: it cannot be read.
        """
        with self.path.open("rb") as self._stream:
            self._scan()
            yield self

    def add(self, prompts: Mapping[int, Sequence[Attempt]]) -> None:
        """Write the attempts at prompts, by number, that are not there yet; they are on disk when this returns.

        Raises:
            OSError: they cannot be written.
        """
        data, offset = b"", self._stream.seek(0, os.SEEK_END)
        for prompt, attempts in prompts.items():
            if prompt not in self:
                self._offsets[prompt] = offset + len(data)
                data += _line({"prompt": prompt, "attempts": [asdict(attempt) for attempt in attempts]})
        self._write(data)

    def read(self, prompt: int) -> list[Attempt]:
        """Return the attempts at a prompt that is in the file."""
        self._stream.seek(self._offsets[prompt])
        return [Attempt(**attempt) for attempt in json.loads(self._stream.readline())["attempts"]]

    def _scan(self) -> int:
        """Take note of all whole lines, and return where they end."""
        self._stream.seek(0)
        end = 0
        for number, line in enumerate(self._stream, start=1):
            if not line.endswith(b"\n"):
                break
            if number == 1:
                self._check_header(line)
            else:
                self._offsets[self._prompt_of(line, number)] = end
            end += len(line)
        return end

    def _check_header(self, line: bytes) -> None:
        try:
            header = json.loads(line)
        except ValueError:
            header = None
        if not isinstance(header, dict):
            raise DataError(f"{self.path}:1: is damaged; delete the file, or name another folder")
        for key in dict.fromkeys((*self._header, *header)):
            before, now = header.get(key), self._header.get(key)
            if before != now:
                raise RecipeError(
                    f"{self.path} holds attempts of another rollout: {key} was {_short(before)} and is {_short(now)}; "
                    "set it back, or name another folder"
                )

    def _prompt_of(self, line: bytes, number: int) -> int:
        try:
            entry = json.loads(line)
            attempts = [Attempt(**attempt) for attempt in entry["attempts"]]
            if isinstance(entry["prompt"], int) and attempts:
                return entry["prompt"]
        except (ValueError, TypeError, KeyError):
            pass
        raise DataError(f"{self.path}:{number}: is damaged; delete this line, and its prompt is sampled anew")

    def _write(self, data: bytes) -> None:
        self._stream.seek(0, os.SEEK_END)
        self._stream.write(data)
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _line(entry: Any) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "…"
