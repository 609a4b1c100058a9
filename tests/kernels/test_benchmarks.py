"""The benchmarks of the kernels: every line of them runs on CPU, targets are judged, and nothing measured is lost."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import gpu, results, run, training_step
from benchmarks.kernels.case import MODELS, Case, Runs, Target, benchmark, not_installed, operators
from benchmarks.kernels.training_step import Measured
from seeklet.modeling.kernels import launch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).resolve().parents[2]


def case(ours: Callable[[], object], peer: Callable[[], object], target: Target | None = None) -> Case:
    return Case("forward, nano", 43 * 10**9, 788 * 10**9, lambda _: {"ours": ours, "peer": peer}, target)


@pytest.mark.parametrize("operator", operators())
def test_every_benchmark_runs_on_cpu(operator: str) -> None:
    found = run.measure(operator, ["nano"], 1, CPU)
    assert found.failed == [] and not any("FAILED" in line for line in found.lines)
    assert all(line.count("|") == 9 for line in found.lines)
    assert any("| ours |" in line for line in found.lines) and found.ratios


@pytest.mark.parametrize("measure", [lambda: run.measure("swiglu", [], 1, CUDA), lambda: run.run_once([], CUDA)])
def test_on_a_gpu_operators_take_their_kernels(measure: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing seeklet leaves them to the reference until `kernelize`, and that is not what is to be measured."""
    monkeypatch.setattr(launch, "_takes_triton", False)
    monkeypatch.setattr(launch, "TRITON_DEVICES", {"cpu"})
    assert not launch.runs_triton(torch.ones(1))
    measure()
    assert launch.runs_triton(torch.ones(1))


def test_ours_is_called_once_of_each_nano_case(capsys: pytest.CaptureFixture[str]) -> None:
    run.run_once(["swiglu", "mla_decode"], CPU)
    expected = ["swiglu, forward, nano: ran", "swiglu, backward, nano: ran", "mla_decode, decode, nano: ran"]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("operator", operators())
def test_what_is_to_be_reached_is_to_be_reached_at_published_shapes(operator: str) -> None:
    for each in benchmark(operator).cases():
        assert each.target is None or "nano" not in each.name
        assert any(model in each.name for model in MODELS), each.name


@pytest.mark.parametrize(
    ("target", "text", "measured", "met"),
    [
        (Target("TFLOP/s", 450), "≥ 450 TFLOP/s", 394, False),
        (Target("TFLOP/s", 390), "≥ 390 TFLOP/s", 394, True),
        (Target("TB/s", 21), "≥ 21 TB/s", 21.5, True),
        (Target("of the copy", 0.8), "≥ 80% of the copy", 5, True),
        (Target("µs", 2000), "≤ 2000 µs", 2000, True),
        (Target("µs", 1999), "≤ 1999 µs", 2000, False),
        (Target("times as fast", 1.5, "peer"), "≥ 1.5 times as fast of peer", 1.5, True),
        (Target("times the time", 0.5, "peer"), "≤ 0.5 times the time of peer", 2 / 3, False),
        (Target("times as fast", 1.5, "absent"), "≥ 1.5 times as fast of absent", float("nan"), False),
    ],
)
def test_targets_are_judged(target: Target, text: str, measured: float, met: bool) -> None:
    """43 GB and 788 GFLOP in 2 ms, 3 by the peer: 394 TFLOP/s and 21.5 TB/s, five times as fast as a copy."""
    figure, is_met = target.reached(case(int, int), {"ours": 2.0, "peer": 3.0})
    assert figure == pytest.approx(measured, nan_ok=True) and is_met == met
    assert str(target).replace(" as fast of", " as fast of") == text


def test_a_peer_that_fails_is_told_and_one_of_ours_ends_badly() -> None:
    def fail() -> None:
        raise RuntimeError("no such kernel\nat line 7")

    found = run.compare(case(lambda: None, fail), 1, CPU)
    assert found.failed == [] and found.ratios == {}
    assert found.lines[1] == "| forward, nano | peer | FAILED: RuntimeError: no such kernel | | | | | |"
    found = run.compare(case(fail, lambda: None), 1, CPU)
    assert found.failed == ["forward, nano: RuntimeError: no such kernel"]


def test_bytes_kept_are_counted_once_and_without_weights() -> None:
    x, weight = torch.ones(8, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
    # The product keeps x and the weight, the square its own input; a view of x is no memory of its own.
    assert run.bytes_kept(lambda: (x @ weight).square().sum(), [weight]) == 2 * 8 * 4 * 4
    assert run.bytes_kept(lambda: (x[2:] @ weight) + (x[:6] @ weight), [weight]) == 8 * 4 * 4


def test_peers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("linear_cross_entropy")
    monkeypatch.setattr(module, "PEERS", {"There": "torch.nn", "Away": "no_such_library.kernels"})
    assert not_installed("linear_cross_entropy") == ["Away"]


def test_sections_of_results_are_renewed_one_by_one(tmp_path: Path) -> None:
    for section, line in (("bench rope", "old"), ("tests", "| passed |"), ("bench rope", "new")):
        written = results.record(tmp_path, section, [line], {section: 1.5})
    text = written.read_text(encoding="utf-8")
    assert text.startswith("## bench rope\n\nnew\n\n## tests\n\n| passed |\n") and "old" not in text
    stored = json.loads(written.with_suffix(".json").read_text(encoding="utf-8"))
    assert stored["sections"]["tests"] == {"lines": ["| passed |"], "ratios": {"tests": 1.5}}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_training_step_of_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_step.main(["--smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| times as fast (target ≥ 2) |") and "FAILED" not in "".join(lines)


def test_both_sides_of_a_training_step_start_from_the_same_weights() -> None:
    ours, theirs = (
        {
            name.replace("base_layer.", ""): tensor
            for name, tensor in make(training_step.NANO, CPU).state_dict().items()
            if "lora" not in name
        }
        for make in (training_step.ours, training_step.stock)
    )
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ratios_of_a_training_step() -> None:
    found: dict[str, Measured | str] = {
        "ours": Measured(1.0, 30.0, "seeklet"),
        "stock + PEFT": Measured(2.5, 40.0, "stock"),
    }
    assert list(training_step.ratios_of(found).values()) == [(2.5, True), (0.75, False)]
    failed = {**found, "stock + PEFT": "OutOfMemoryError: CUDA out of memory"}
    assert training_step.ratios_of(failed) == {}
    assert "| stock + PEFT | FAILED: OutOfMemoryError: CUDA out of memory | | |" in training_step.lines_of(64, failed)


def test_every_test_file_belongs_to_one_operator_or_to_the_rest() -> None:
    chosen = [file for each in (*operators(), gpu.REST) for file in gpu.files_of(each)]
    there = {f"tests/kernels/{file.name}" for file in Path(__file__).parent.glob("test_*.py")}
    assert len(chosen) == len(set(chosen)) and set(chosen) == there | {"tests/modeling"}
    assert "tests/kernels/test_linear_log_probs_kernel.py" in gpu.files_of("linear_log_probs")
    assert "tests/kernels/test_linear_log_probs_kernel.py" not in gpu.files_of("linear")


def test_commands_end_with_the_budget(capfd: pytest.CaptureFixture[str]) -> None:
    sleep = [gpu.sys.executable, "-c", "import time; time.sleep(30)"]
    start = time.monotonic()
    assert gpu.passed(sleep, start + 0.5) == "out of time" and time.monotonic() - start < 20
    assert gpu.passed(sleep, start) == "out of time"
    assert gpu.passed([gpu.sys.executable, "-c", "raise SystemExit(5)"], time.monotonic() + 60) == "passed"
    assert gpu.passed([gpu.sys.executable, "-c", "raise SystemExit(1)"], time.monotonic() + 60) == "FAILED"


@pytest.mark.parametrize("budget_s", [60.0, 0.0])
def test_tests_run_at_once_and_are_told_by_operator(
    budget_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files in which one test fails, one that cannot be read, one without a test for a GPU."""
    texts = {
        "test_rope": "import pytest\n@pytest.mark.gpu\ndef test_a(): pass\n",
        "test_rope_kernel": "import pytest\n@pytest.mark.gpu\ndef test_b(): assert False\n",
        "test_router": "import pytest\n@pytest.mark.gpu\ndef test_c(): pass\n",
        "test_swiglu": "import no_such_module\n",
        "test_layers": "def test_d(): assert False\n",
    }
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    files = {
        "rope": ["test_rope.py", "test_rope_kernel.py"],
        "router": ["test_router.py"],
        "swiglu": ["test_swiglu.py"],
    }
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "files_of", lambda each: files.get(each, ["test_layers.py"]))
    monkeypatch.setattr(gpu, "pytest_command", lambda *given: [
        gpu.sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors", *given
    ])  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = gpu.test(["rope", "router", "swiglu", gpu.REST], time.monotonic() + budget_s)
    if not budget_s:
        assert set(found.values()) == {"out of time"}
        return
    assert found == {"rope": "FAILED", "router": "passed", "swiglu": "FAILED", gpu.REST: "passed"}


def test_nothing_of_a_command_outlives_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Such as the processes of a test run, one of which waits for a kernel that never ends."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu.passed([gpu.sys.executable, "-c", parent], time.monotonic() + 3) == "out of time"
    process = int(capfd.readouterr().out.splitlines()[-1])
    for _ in range(100):
        if not _runs(process):
            break
        time.sleep(0.05)
    assert not _runs(process)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_sanitizer_that_does_not_run_here_is_no_failure_of_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text("#!/bin/sh\necho ========= COMPUTE-SANITIZER\necho ========= Device not supported\nexit 1\n")
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    why = {"compute-sanitizer": "does not run here: Device not supported"}
    assert gpu.sanitize("rope", time.monotonic() + 60) == why
    assert gpu.stage_of_operators("sanitize", ["rope"], tmp_path, lambda _: why) == {"rope": why["compute-sanitizer"]}
    assert gpu.sanitize("rope", 0.0) == {"memcheck": "out of time", "racecheck": "out of time"}


def test_cuda_sources_that_do_not_compile_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        raise gpu.subprocess.CalledProcessError(1, "nvcc")

    monkeypatch.setattr(gpu.rope_cuda, "toolkit", lambda: Path("/usr"))
    monkeypatch.setattr(gpu.rope_cuda, "build", build)
    assert gpu.build_cuda() == {"rope.cu": "FAILED"}


def test_what_was_measured_is_kept_before_the_next_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(_: torch.device) -> Runs:
        raise torch.OutOfMemoryError("no room")

    cases = [case(lambda: None, lambda: None), case(int, int)._replace(name="backward, nano", runs=out_of_memory)]
    monkeypatch.setattr(benchmark("swiglu"), "cases", lambda: cases)
    seen: list[int] = []
    found = run.measure("swiglu", ["nano"], 1, CPU, lambda found: seen.append(len(found.lines)))
    assert seen == [4, 5] and found.lines[-1] == (
        "| backward, nano | inputs | FAILED: OutOfMemoryError: no room | | | | | |"
    )
    assert found.failed == ["swiglu, backward, nano: OutOfMemoryError: no room"]


def test_stages_are_kept_operator_by_operator(tmp_path: Path) -> None:
    def check(operator: str) -> dict[str, str]:
        if operator == "swiglu":
            text = next(tmp_path.glob("*.md")).read_text(encoding="utf-8")
            assert "| rope, memcheck | passed |" in text and "swiglu" not in text
            return {"memcheck": "out of time", "racecheck": "FAILED"}
        return {"memcheck": "passed", "racecheck": "passed"}

    worst = gpu.stage_of_operators("sanitize", ["rope", "swiglu"], tmp_path, check)
    assert worst == {"rope": "passed", "swiglu": "FAILED"}


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (gpu.main, ["--op", "ropes"], "no operator ropes; there are block_fp8"),
        (gpu.main, ["--only", "all"], "'tests', 'bench', 'step', 'sanitize'"),
        (run.main, ["ropes"], "no benchmark of ropes"),
        (run.main, ["--repeats", "0"], "--repeats is 0; allowed: 1 or more"),
    ],
)
def test_bad_arguments_are_told(main, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and says in capsys.readouterr().err.replace("choose from tests", "'tests'")
