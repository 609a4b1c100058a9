"""Every kernel as it is compiled for GPUs that are not here: no spills, within limits, no worse than it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

import triton

from seeklet.modeling.kernels import launch
from seeklet.modeling.kernels.grouped_experts import tiling
from seeklet.modeling.kernels.launch import Configuration
from tests.kernels import ahead_of_time
from tests.kernels.ahead_of_time import Compiled

CASES = [
    pytest.param(operator, configuration, capability, id=f"{operator}-{configuration.name}-sm_{capability}")
    for operator in ahead_of_time.operators_with_kernels()
    for configuration in ahead_of_time.configurations(operator)
    for capability in configuration.capabilities
]
GOOD = Compiled(registers=100, stack=0, spills=0, shared=1000, tensor_cores=8)


@pytest.mark.parametrize(("operator", "configuration", "capability"), CASES)
def test_compiles_within_the_gates_and_no_worse_than_before(
    operator: str, configuration: Configuration, capability: int
) -> None:
    table = ahead_of_time.read_table(operator)
    row = dict(table["kernels"][f"{configuration.name}/sm_{capability}"])
    is_of_this_source = row.pop("source") == ahead_of_time.hash_source(configuration)
    before = Compiled(**row)
    if (
        is_of_this_source
        and table["triton"] == triton.__version__
        and not _stands_for_its_function(operator, configuration, capability)
    ):
        compiled = before
    else:
        compiled = ahead_of_time.compile_kernel(configuration, capability)
    assert ahead_of_time.failed_gates(configuration, capability, compiled) == []
    if table["triton"] != triton.__version__:
        pytest.skip(f"the table is of triton {table['triton']}; renew it: python -m tests.kernels.ahead_of_time")
    assert ahead_of_time.regressions(compiled, before) == []


def _stands_for_its_function(operator: str, configuration: Configuration, capability: int) -> bool:
    """Return whether this is the one of its function that is compiled whether or not its source changed."""
    same = [each for each in ahead_of_time.configurations(operator) if each.function is configuration.function]
    first = next((each for each in same if 90 in each.capabilities), same[0])
    return configuration.name == first.name and capability == (
        90 if 90 in first.capabilities else first.capabilities[0]
    )


@pytest.mark.parametrize("operator", ahead_of_time.operators_with_kernels())
def test_the_table_holds_what_there_is(operator: str) -> None:
    found = {
        f"{configuration.name}/sm_{capability}"
        for configuration in ahead_of_time.configurations(operator)
        for capability in configuration.capabilities
    }
    assert ahead_of_time.read_table(operator)["kernels"].keys() == found


@pytest.mark.parametrize(("found", "taken"), [((8, 0), 80), ((8, 9), 86), ((9, 0), 90), ((10, 0), 100), ((12, 0), 86)])
def test_chips_with_little_shared_memory_take_what_is_for_sm_80(
    found: tuple[int, int], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    on_gpu: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))
    assert launch.capability(on_gpu) == taken
    rows = [tiling.of_rows(kind, torch.bfloat16, 128, taken) for kind in ("gate_up", "rows", "activation")]
    assert (rows == [tiling.of_rows(kind, torch.bfloat16, 128, 80) for kind in ("gate_up", "rows", "activation")]) == (
        taken < 90
    )
    assert launch.capability(torch.empty(0)) == 90


@pytest.mark.parametrize(
    ("worse", "says"),
    [
        ({"registers": 111}, "registers"),
        ({"shared": 1001}, "shared"),
        ({"tensor_cores": 7}, "matrix instructions"),
    ],
)
def test_getting_worse_is_told(worse: dict[str, int], says: str) -> None:
    [line] = ahead_of_time.regressions(GOOD._replace(**worse), GOOD)
    assert says in line
    assert ahead_of_time.regressions(GOOD._replace(registers=110), GOOD) == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"stack": 8}, "spills"),
        ({"spills": 1}, "spills"),
        ({"shared": 163 * 1024 + 1}, "shared"),
        ({"tensor_cores": 0}, "matrix"),
        ({"float_atomics": 1}, "order they come"),
    ],
)
def test_each_gate_closes(bad: dict[str, int], says: str) -> None:
    configuration = Configuration("any", None, {}, {}, tensor_cores=True)
    [line] = ahead_of_time.failed_gates(configuration, 80, GOOD._replace(**bad))
    assert says in line


def test_large_tiles_are_for_warp_groups() -> None:
    configuration = Configuration("any", None, {}, {"BLOCK_M": 64}, tensor_cores=True)
    [line] = ahead_of_time.failed_gates(configuration, 90, GOOD)
    assert "warp by warp" in line
    assert ahead_of_time.failed_gates(configuration, 90, GOOD._replace(of_warp_groups=8)) == []
    assert ahead_of_time.failed_gates(configuration, 80, GOOD) == []


@pytest.mark.parametrize(
    ("ptx", "found"),
    [
        ("@%p1 atom.global.gpu.acq_rel.add.f32 %r4, [ %rd4 + 0 ], %r5;", 1),
        ("@%p1 atom.global.gpu.acq_rel.add.noftz.bf16 %rs1, [ %rd2 + 0 ], %rs2;", 1),
        ("atom.relaxed.gpu.global.cas.b32 %r3, [%rd2], %r19, %r16;", 1),
        ("red.global.add.f32 [%rd2], %f1;", 1),
        ("@%p1 atom.global.gpu.relaxed.add.u32 %r3, [ %rd3 + 0 ], %r4;", 0),
    ],
)
def test_atomics_whose_order_matters_are_found(ptx: str, found: int) -> None:
    """Lines as triton writes them for sm_80 and sm_90."""
    assert len(ahead_of_time.FLOAT_ATOMICS.findall(ptx)) == found
