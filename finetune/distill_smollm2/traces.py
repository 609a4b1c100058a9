"""What the example takes from the demo's folder: the teacher's accepted traces, held-out problems, its own accuracy."""

import json
from collections.abc import Iterator
from pathlib import Path

from seeklet.modeling import SeekletError

from ..atomic_files import write_text
from ..demo.findings import GRPO
from ..demo.out_folder import DATA, GREEDY
from ..errors import DataError
from ..evaluation.measures import Estimate
from ..evaluation.reasoning_report import JSON
from ..evaluation.reasoning_results import ReasoningReport, estimate_figures, read_reasoning_report
from ..reasoning import END_THINK, THINK
from ..rollout.run import DATASET

# In the demo's folder.
TRACES, PROBLEMS, TEACHER = f"rollout/{DATASET}", f"{DATA}/test.jsonl", f"{GREEDY}/{GRPO}"


class NoDemoError(SeekletError, FileNotFoundError):
    """The demo has not been run, or not far enough; the message names what is missing."""


def find_traces(demo: Path) -> Path:
    """Return the file of the traces that the demo's rejection sampling accepted.

    Raises:
        NoDemoError: there is none, or it is empty, or the held-out problems are missing.
    """
    for name, what in ((TRACES, "no accepted traces"), (PROBLEMS, "no held-out problems")):
        file = demo / name
        if not file.is_file() or not file.stat().st_size:
            raise NoDemoError(f"--demo {demo} holds {what} ({name}); `make demo` comes first")
    return demo / TRACES


def write_problems(demo: Path, number: int, file: Path) -> None:
    """Write the first `number` of the demo's held-out problems to `file`.

    Raises:
        OSError: they cannot be read or written.
    """
    with (demo / PROBLEMS).open(encoding="utf-8") as lines:
        chosen = [line for _, line in zip(range(number), lines, strict=False)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(chosen))


def read_traces(file: Path) -> Iterator[tuple[str, str]]:
    """Yield what was asked, and what the teacher wrote, of each row of the traces.

    Raises:
        DataError: a row is no conversation; names its line.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                *before, said = json.loads(line)["messages"]
                asked, answer = before[-1]["content"], said["content"]
            except (ValueError, KeyError, TypeError, IndexError):
                raise DataError(
                    f"{file}:{number}: no row of a rollout; allowed: messages, the last one the teacher's"
                ) from None
            yield str(asked), f"{THINK}{said.get('reasoning_content') or ''}{END_THINK}{answer}"


def teacher_pass_at_1(demo: Path, after: ReasoningReport) -> Estimate | None:
    """Return how many of the problems of `after` the teacher gets right greedily, in percent.

    None where the demo has not measured that on all of them.
    """
    try:
        report = read_reasoning_report(demo / TEACHER / JSON)
    except (OSError, DataError):
        return None
    # The student is told more than the teacher, before what both are asked.
    asked = {result.messages[-1]["content"] for result in after.results}
    results = [result for result in report.results if result.messages[-1]["content"] in asked]
    return estimate_figures(results)["pass@1"] if len(results) == len(after.results) else None
