"""Tuning: the fastest tiling that gives the same numbers is taken, written, and obeyed by the launches."""

import runpy
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from benchmarks.kernels import tune
from seeklet.modeling.kernels import tuned
from seeklet.modeling.kernels.linear_log_probs import kernel as log_probs
from seeklet.modeling.kernels.mla_attention import kernel as attention

KEY = "mla_attention.forward/sm_90"
TIMES = {0: 10.0, 1: 9.9, 2: 7.0, 3: 5.0, 4: 4.0, 5: 8.0}


def call() -> torch.Tensor:
    """Return numbers: others for tiling 4; tiling 3 does not compile."""
    which = tuned.tuned("mla_attention.forward", 90).get("which", 0)
    if which == 3:
        raise RuntimeError("out of resource: shared memory\nRequired: 300000")
    return torch.full((2,), 2.0 if which == 4 else 1.0)


def measure(run) -> float:
    run()
    return TIMES[tuned.tuned("mla_attention.forward", 90).get("which", 0)]


def test_the_fastest_that_gives_the_same_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(tuned.TUNED)
    found = tune.fastest(call, KEY, [{"which": which} for which in (1, 2, 3, 4, 5)], measure)
    assert found == {"which": 2} and before == tuned.TUNED
    text = capsys.readouterr().out
    assert "{'which': 3}: RuntimeError: out of resource: shared memory\n" in text
    assert "{'which': 4}: AssertionError" in text and "10.000 ms as it is" in text
    # One percent is noise.
    assert tune.fastest(call, KEY, [{"which": 1}], measure) is None


def test_what_is_written_is_what_was_found(tmp_path: Path) -> None:
    found = {KEY: {"BLOCK_S": 64, "num_warps": 4}, "linear_log_probs.forward/sm_100": {"BLOCK_T": 64}}
    file = tmp_path / "tuned.py"
    tune.write(file, tune.text_of(found, "NVIDIA H200"))
    module = runpy.run_path(str(file))
    assert module["TUNED"] == found and "Measured on: NVIDIA H200." in module["__doc__"]
    assert module["tuned"]("mla_attention.forward", 90) == found[KEY] and module["tuned"]("mla_attention.key", 90) == {}
    with mock.patch.object(tune, "FILE", file):
        again = tune.text_of({KEY: found[KEY]}, "NVIDIA B200")
    assert "H200" not in again and again.count("def tuned") == 1
    tune.write(file, again)
    assert runpy.run_path(str(file))["TUNED"] == {KEY: found[KEY]}


def test_launches_obey_what_was_measured_on_their_chip_and_in_half_precision() -> None:
    measured = {KEY: {"BLOCK_S": 16, "BLOCK_T": 32, "num_warps": 2, "num_stages": 1}}
    measured["linear_log_probs.backward/sm_90"] = {"BLOCK_V": 64}
    with mock.patch.dict(tuned.TUNED, measured):
        assert attention._tiling("forward", torch.bfloat16, 90) == measured[KEY]
        assert attention._tiling("forward", torch.bfloat16, 100)["BLOCK_S"] == attention.SM_90["forward"][0]
        assert attention._tiling("forward", torch.float32, 90)["BLOCK_S"] == attention.FP32["forward"][0]
        assert log_probs._tiling(torch.bfloat16, False, 90)["BLOCK_V"] == 64
        compiled = {each.name: each.constants for each in attention.configurations()}
        assert compiled["forward_bf16_v3_sm90"]["BLOCK_S"] == 16 != compiled["forward_bf16_v3_sm100"]["BLOCK_S"]


@pytest.mark.parametrize("kernel", tune.TUNABLE)
def test_every_kernel_has_a_call_and_the_sizes_that_it_takes(kernel: str) -> None:
    operator, name = kernel.split(".")
    tilings = tune.TUNABLE[kernel].tilings()
    taken = (
        attention._tiling(name, torch.bfloat16, 90)
        if operator == "mla_attention"
        else log_probs._tiling(torch.bfloat16, name == "forward", 90)
    )
    assert all(tiling.keys() == taken.keys() for tiling in tilings) and taken.keys() and len(tilings) > 7
    assert tune.call_of(kernel, "nano", torch.device("cpu"))() is not None


def test_kernels_are_chosen_by_name_or_operator() -> None:
    assert tune.chosen_kernels([]) == list(tune.TUNABLE)
    assert tune.chosen_kernels(["linear_log_probs", "mla_attention.key"]) == [
        "mla_attention.key",
        "linear_log_probs.forward",
        "linear_log_probs.backward",
    ]
    with pytest.raises(ValueError, match=r"no kernel rope with several tilings; there are linear_log_probs, "):
        tune.chosen_kernels(["rope"])
