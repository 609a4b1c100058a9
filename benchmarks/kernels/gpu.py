"""All that a GPU can show, in one call: `make gpu`. Without one it says so and does nothing.

    python -m benchmarks.kernels.gpu [--out benchmarks/results]

0. Kernels in CUDA C++ are built, where there is an nvcc. 1. The tests that need a GPU. 2. Each kernel's tests again
under compute-sanitizer, where that is installed: memcheck for addresses, racecheck for shared memory. 3. The
benchmarks. What came of 1 and 2 is kept beside the benchmarks' results; the exit code is 1 where anything failed, and
kernels are not measured while their tests fail.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.kernels import rope_cuda
from benchmarks.kernels.run import NOT_RUN
from benchmarks.report import keep, machine, make_folder

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck")


def pytest_command(*paths: str) -> list[str]:
    """Return the command that runs what needs a GPU in these files or folders."""
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *paths]


def passed(command: list[str], **environment: str) -> bool:
    """Run a command with its output on the terminal; return whether it succeeded or had no test to run."""
    no_tests = 5
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode in (0, no_tests)


def sanitize(files: list[str]) -> list[str]:
    """Return a line of a table for each file of tests and each tool."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return ["| compute-sanitizer | not installed here: nothing was checked with it |"]
    lines = []
    for file in files:
        for tool in TOOLS:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "1", *pytest_command(file)]
            # Each tensor its own allocation, so that an address behind one is an address of none.
            well = passed(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            lines.append(f"| {file}, {tool} | {'clean' if well else 'ERRORS'} |")
    return lines


def main() -> int:
    """Test, check and measure; 1 where anything failed, 0 where all is well or there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print(NOT_RUN)
        return 0
    make_folder(parser, out)
    if rope_cuda.toolkit() is not None:
        rope_cuda.build()
    tests = passed(pytest_command("tests/kernels", "tests/modeling"))
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/kernels").glob("test_*_kernel*.py"))
    lines = ["| what | came out |", "|---|---|", f"| tests on the GPU | {'passed' if tests else 'FAILED'} |"]
    lines += sanitize(files)
    about = {**machine(), "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    keep(out, "kernel-tests", about, lines, {})
    if not tests:
        return 1
    measured = passed([sys.executable, "-m", "benchmarks.kernels.run", "--out", str(out)])
    return 0 if measured and not any("ERRORS" in line for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
