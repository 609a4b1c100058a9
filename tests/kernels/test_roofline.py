"""Every kernel has a benchmark whose floors are written down, and whose calls agree with each other."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import roofline
from benchmarks.kernels.case import Case, benchmark, operators
from benchmarks.kernels.run import NOT_RUN
from seeklet.modeling import kernels

KERNELS = sorted(path.parent.name for path in Path(kernels.__file__).parent.glob("*/kernel.py"))
NANO = [
    pytest.param(case, id=f"{operator}, {case.name}")
    for operator in operators()
    for case in benchmark(operator).cases()
    if "nano" in case.name
]


def test_every_kernel_has_a_benchmark() -> None:
    assert set(KERNELS) <= set(operators())


def test_the_roofline_file_is_what_would_be_written() -> None:
    """If not: python -m benchmarks.kernels.roofline."""
    assert roofline.FILE.read_text(encoding="utf-8") == roofline.text()


def test_the_floor_is_the_longer_of_both_times() -> None:
    assert Case("", 43 * 10**11, 788, lambda device: {}).floor_s == 1.0
    assert Case("", 43, 788 * 10**12, lambda device: {}).floor_s == 1.0


@pytest.mark.parametrize("case", NANO)
def test_what_is_compared_gives_the_same(case: Case) -> None:
    runs = case.runs(torch.device("cpu"))
    labels = list(runs)
    assert labels[0] == "ours" and len(labels) > 1
    # What leaves a part of the work out shows what that part costs.
    compared = [label for label in labels if "torch.compile" not in label and "without" not in label]
    results = {label: runs[label]() for label in compared}
    for label, result in results.items():
        torch.testing.assert_close(
            result, results["ours"], rtol=0.05, atol=0.05, msg=lambda text, label=label: f"{label}: {text}"
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU where there is none")
def test_without_a_gpu_it_says_so() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.kernels.run", "rms_norm"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout.strip()) == (0, NOT_RUN)
