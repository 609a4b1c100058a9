"""All that a GPU can show: `make gpu`. Without one it says so and does nothing.

    python -m benchmarks.kernels.gpu [--only tests|bench|step|sanitize|tune] [--op NAME ...] [--budget-s 570]

In this order, operator by operator, each written to the results when it is done, so that a run cut short loses nothing:
1. tests: those that need a GPU, all at once, and what failed again by itself: a kernel that breaks its process takes
   others' tests along. Kernels in CUDA C++ are built first, where there is an nvcc.
2. bench: each operator beside its peers, unless its tests failed. 3. step: a whole fine-tuning step beside stock's.
4. sanitize: each operator once at nano size under compute-sanitizer, where that runs: memcheck for addresses,
   racecheck for shared memory.
5. tune, only where it is asked for: the fastest tiling of each kernel that has several, kept for all later launches.

Each stage has a share of the budget, and what those before it left of theirs. What does not fit is named and left for a
further call. The exit code is 1 where anything failed.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.kernels import outcomes, rope_cuda
from benchmarks.kernels.case import benchmark, operators
from benchmarks.kernels.results import record
from benchmarks.kernels.run import NOT_RUN
from benchmarks.report import make_folder

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "kernels"
TOOLS = ("memcheck", "racecheck")
STAGES = ("tests", "bench", "step", "sanitize", "tune")
# Of the budget, when each of the first four is over.
ENDS = {"tests": 0.4, "bench": 0.75, "step": 0.95, "sanitize": 1.0}
# A kernel that never ends is to cost its operator's time only.
MOST_S_PER_COMMAND = 150.0
# What is no operator's: layers, models, hooks.
REST = "the rest"
KEPT_GOING = ("-p", "no:cacheprovider", "--continue-on-collection-errors")
# A process for each, which share the GPU: compiling takes longer than running.
PROCESSES = min(8, os.cpu_count() or 1)


def files_of(operator: str) -> list[str]:
    """Return an operator's test files, or those of no operator; relative to the repository."""
    known = [*operators(), REST]
    files = sorted(TESTS.glob("test_*.py"))
    if operator == REST:
        chosen = [file for file in files if _operator_of(file, known) is None]
        return [file.relative_to(ROOT).as_posix() for file in chosen] + ["tests/modeling"]
    return [file.relative_to(ROOT).as_posix() for file in files if _operator_of(file, known) == operator]


def _operator_of(file: Path, known: Sequence[str]) -> str | None:
    """Return the operator with the longest name that the file's begins with: test_linear_kernel is linear's."""
    name = file.stem.removeprefix("test_")
    found = [each for each in known if name == each or name.startswith(f"{each}_")]
    return max(found, key=len, default=None)


def pytest_command(*paths: str) -> list[str]:
    """Return the command that runs what needs a GPU in these files or folders."""
    parallel = ["--numprocesses", str(PROCESSES)] if find_spec("xdist") else []
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *KEPT_GOING, *parallel, *paths]


def test(chosen: Sequence[str], deadline: float) -> dict[str, str]:
    """Return what came of the tests of each of these operators, and of `REST` if it is among them."""
    group_of = {file: each for each in chosen for file in files_of(each)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        writer = ["-p", "benchmarks.kernels.outcomes", "--outcomes", str(file)]
        ended = passed(pytest_command(*writer, *group_of), deadline)
        found = outcomes.read(file, lambda path: group_of.get(path, REST if REST in chosen else None))
    if ended == "FAILED" and not any("failed" in each for each in found.values()):
        # It came to nothing: that no one fails is no news of anyone.
        return dict.fromkeys(chosen, ended)
    return {each: "FAILED" if "failed" in found.get(each, ()) else ended.replace("FAILED", "passed") for each in chosen}


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of these benchmarks."""
    return [sys.executable, "-m", f"benchmarks.kernels.{module}", *arguments]


def passed(command: list[str], deadline: float, **environment: str) -> str:
    """Run a command with its output on the terminal; return "passed", "FAILED" or "out of time"."""
    no_tests = 5
    left = deadline - time.monotonic()
    if left <= 0:
        return "out of time"
    print("$", " ".join(command), flush=True)
    # A group of its own, as processes of a test that hangs would otherwise stay on the GPU.
    run = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True)
    try:
        code = run.wait(left)
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    return "passed" if code in (0, no_tests) else "FAILED"


def build_cuda() -> dict[str, str]:
    """Build what is in CUDA C++; return what came out, nothing where there is no compiler."""
    if rope_cuda.toolkit() is None:
        return {}
    try:
        rope_cuda.build()
    except subprocess.CalledProcessError:
        # Of a toolkit too old for a chip, say: the Triton kernels are to be tested all the same.
        return {"rope.cu": "FAILED"}
    return {"rope.cu": "passed"}


@cache
def why_not_sanitized(sanitizer: str | None) -> str | None:
    """Return why compute-sanitizer cannot check anything here, None where it can: it refuses some virtual machines."""
    if sanitizer is None:
        return "not installed"
    probe = [sanitizer, "--error-exitcode", "1", sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"]
    try:
        ran = subprocess.run(probe, capture_output=True, text=True, timeout=MOST_S_PER_COMMAND)
    except subprocess.TimeoutExpired:
        return f"a single addition takes more than {MOST_S_PER_COMMAND:g} s under it"
    if ran.returncode == 0:
        return None
    said = [line for line in ran.stdout.splitlines() if line.startswith("=========") and line.strip("= ")]
    return f"does not run here: {said[-1].strip('= ') if said else f'exit code {ran.returncode}'}"


def sanitize(operator: str, deadline: float) -> dict[str, str]:
    """Return what each tool says of an operator at nano size."""
    if time.monotonic() >= deadline:
        return dict.fromkeys(TOOLS, "out of time")
    sanitizer = shutil.which("compute-sanitizer")
    why = why_not_sanitized(sanitizer)
    if sanitizer is None or why is not None:
        return {"compute-sanitizer": why or "not installed"}
    # Each tensor its own allocation, so that an address behind one is an address of none.
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = module_command("run", "--once", operator)
    tool = [sanitizer, "--error-exitcode", "1", "--tool"]
    return {each: passed([*tool, each, *command], deadline, **apart) for each in TOOLS}


def stage_of_operators(
    stage: str, chosen: Sequence[str], out: Path, check: Callable[[str], dict[str, str]]
) -> dict[str, str]:
    """Run one stage operator by operator, recording after each; return the worst of each operator."""
    lines, worst = ["| what | came out |", "|---|---|"], dict[str, str]()
    for operator in chosen:
        found = check(operator)
        lines += [f"| {operator}, {what} | {result} |" for what, result in found.items()]
        worst[operator] = min(found.values(), key=_from_worst, default="passed")
        record(out, stage if len(chosen) > 1 else f"{stage} {operator}", lines, {})
    print(*lines, sep="\n", flush=True)
    return worst


def _from_worst(result: str) -> int:
    order = ("FAILED", "out of time")
    return order.index(result) if result in order else len(order) + (result == "passed")


def _with_targets_first(chosen: Sequence[str]) -> list[str]:
    return sorted(chosen, key=lambda operator: all(case.target is None for case in benchmark(operator).cases()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Test, check and measure; 1 where anything failed, 0 where all is well or there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only", choices=STAGES, help="one stage in place of the first four")
    parser.add_argument("--op", nargs="+", metavar="NAME", help=f"of {', '.join(operators())}; all by default")
    parser.add_argument("--budget-s", type=float, default=570.0, help="stop after so many seconds; 570 by default")
    given = parser.parse_args(arguments)
    unknown = set(given.op or ()) - set(operators())
    if unknown:
        parser.error(f"no operator {', '.join(sorted(unknown))}; there are {', '.join(operators())}")
    if not torch.cuda.is_available():
        print(NOT_RUN)
        return 0
    make_folder(parser, given.out)
    start = time.monotonic()
    stages = [given.only] if given.only else list(ENDS)
    chosen = given.op or _with_targets_first(operators())
    to_out = ("--out", str(given.out))

    def end_of(stage: str) -> float:
        return start + given.budget_s * (1.0 if given.only else ENDS[stage])

    def soon(stage: str) -> float:
        return min(end_of(stage), time.monotonic() + MOST_S_PER_COMMAND)

    results: dict[str, str] = {}
    if "tests" in stages:
        results |= build_cuda() if "rope" in chosen else {}
        at_once = test([*chosen, *([] if given.op else [REST])], end_of("tests"))

        def alone(operator: str) -> dict[str, str]:
            if at_once[operator] != "FAILED":
                return {"tests": at_once[operator]}
            again = passed(pytest_command(*files_of(operator)), soon("tests"))
            return {"tests": "FAILED" if again == "out of time" else again}

        results |= stage_of_operators("tests", list(at_once), given.out, alone)
    for operator in chosen if "bench" in stages else ():
        # Nothing is measured that computes something else.
        result = "its tests FAILED" if results.get(operator) == "FAILED" else ""
        results[f"{operator}, bench"] = result or passed(module_command("run", *to_out, operator), soon("bench"))
    if "step" in stages and not given.op:
        results["training step"] = passed(module_command("training_step", *to_out), end_of("step"))
    if "sanitize" in stages:
        found = stage_of_operators("sanitize", chosen, given.out, lambda op: sanitize(op, soon("sanitize")))
        results |= {f"{op}, sanitized": result for op, result in found.items()}
    if "tune" in stages:
        results["tune"] = passed(module_command("tune", *(given.op or ())), end_of("tune"))
    for what, result in results.items():
        print(f"{what}: {result}")
    return 1 if any("FAILED" in result for result in results.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
