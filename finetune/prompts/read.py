"""Prompts from files and from reasoning-gym, every problem with its file and line."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..data.fingerprint import fingerprint
from ..data.problems import Problem, file_problem
from ..data.read import read_records
from ..data.records import Header, Record
from ..data.rows import ROLES, Message, Source
from ..data.wording import listed
from ..errors import DataError
from .settings import PromptSettings

# Names that prompt and answer go by in published data sets, the first that is there.
NAMES = {
    "prompt": ("prompt", "question", "problem", "instruction", "query", "messages"),
    "answer": ("answer", "solution", "target", "response", "output", "completion"),
}
# reasoning-gym draws problem i of seed s from Random(s + i): neighbouring seeds share nearly all problems.
GYM_SPACING = 10_000_000
MAX_PROBLEMS = 20


class Prompt(NamedTuple):
    """A question, where it stands, and every other column of its row; `answer` among them where there is one."""

    messages: list[Message]
    columns: dict[str, Any]
    source: Source

    @property
    def key(self) -> int:
        """64 bits that depend on what is asked, system messages aside."""
        return fingerprint([message for message in self.messages if message["role"] != "system"])


def read_prompts(settings: PromptSettings) -> tuple[list[Prompt], list[Prompt]]:
    """Return prompts to train on and held-out ones; none is there twice.

    Raises:
        DataError: something is wrong with them; a line for each problem, up to a number.
    """
    problems: list[str] = []
    own_files = settings.validation if isinstance(settings.validation, tuple) else ()
    validation = _distinct(_read_files(own_files, settings, problems), set())
    seen = {prompt.key for prompt in validation}
    share = 0.0 if isinstance(settings.validation, tuple) else settings.validation
    train = []
    for prompt in _distinct(_all(settings, problems), seen):
        (validation if prompt.key < share * 2**64 else train).append(prompt)
    if problems:
        more = f"\n… and {len(problems) - MAX_PROBLEMS:,} more" if len(problems) > MAX_PROBLEMS else ""
        raise DataError("\n".join(problems[:MAX_PROBLEMS]) + more)
    if not train:
        raise DataError("prompts: none is left to train on; allowed: at least one")
    return train, validation


def _all(settings: PromptSettings, problems: list[str]) -> Iterator[Prompt]:
    yield from _read_files(settings.train, settings, problems)
    for name, options in settings.gym.items():
        yield from _draw(name, options, settings)


def _distinct(prompts: Iterator[Prompt], seen: set[int]) -> list[Prompt]:
    kept = []
    for prompt in prompts:
        if prompt.key not in seen:
            seen.add(prompt.key)
            kept.append(prompt)
    return kept


def _read_files(names: tuple[str, ...], settings: PromptSettings, problems: list[str]) -> Iterator[Prompt]:
    for name in names:
        empty = True
        for record in read_records(name):
            if isinstance(record, Problem):
                empty = False
                if record.severity == "error":
                    problems.append(str(record))
            elif not isinstance(record, Header):
                empty = False
                prompt = _to_prompt(record, settings)
                if isinstance(prompt, Problem):
                    problems.append(str(prompt))
                else:
                    yield prompt
        if empty:
            problems.append(str(file_problem(Source(name), "has no rows", "no-rows")))


def _to_prompt(record: Record, settings: PromptSettings) -> Prompt | Problem:
    row, source = dict(record.value), record.source
    names = {column: _name_of(column, row, settings.columns) for column in NAMES}
    name = names["prompt"]
    if name is None:
        allowed = settings.columns.get("prompt") or listed(NAMES["prompt"])
        message = f"has no question; its columns are {listed(sorted(row))}; allowed: {allowed} (prompts.columns)"
        return Problem(source, "", message, "error", "missing-columns")
    messages = _to_messages(row.pop(name))
    if messages is None:
        message = "is neither a text nor messages of role and content with a user's among them"
        return Problem(source, name, message, "error", "wrong-type")
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    if messages[last + 1 :] and names["answer"] is None:
        row["answer"] = messages[last + 1]["content"]
    elif names["answer"] is not None:
        row["answer"] = row.pop(names["answer"])
    return Prompt(_with_system(messages[: last + 1], settings.system), row, source)


def _name_of(column: str, row: Mapping[str, Any], given: Mapping[str, str]) -> str | None:
    allowed = (given[column],) if column in given else NAMES[column]
    return next((name for name in allowed if row.get(name) is not None), None)


def _to_messages(value: Any) -> list[Message] | None:
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if value.strip() else None
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return None
    messages = [{key: message.get(key) for key in ("role", "content")} for message in value]
    is_right = all(message["role"] in ROLES and isinstance(message["content"], str) for message in messages)
    return messages if is_right and any(message["role"] == "user" for message in messages) else None


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _draw(name: str, options: Mapping[str, Any], settings: PromptSettings) -> Iterator[Prompt]:
    """Yield problems of a task of reasoning-gym, with what its verifier needs as the column `entry`."""
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise DataError('prompts.gym needs reasoning-gym: pip install "seeklet[reasoning]"') from None
    if settings.size > GYM_SPACING:
        raise DataError(f"prompts.size is {settings.size:,}; allowed: up to {GYM_SPACING:,}")
    try:
        task = reasoning_gym.create_dataset(
            name, seed=settings.seed * GYM_SPACING % 2**31, size=settings.size, **options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"prompts.gym.{name}: {str(error).strip() or 'wrong settings'}") from error
    for index in range(settings.size):
        entry = task[index]
        messages = _with_system([{"role": "user", "content": entry["question"]}], settings.system)
        columns = {"answer": entry["answer"], "entry": entry, "task": name}
        yield Prompt(messages, columns, Source(f"gym:{name}", index + 1))
