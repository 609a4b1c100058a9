"""Rope in CUDA C++: compiled where there is an nvcc, loaded without a GPU, and on a GPU the equal of the reference."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import rope_cuda
from seeklet.modeling.kernels.rope import reference
from tests.kernels.devices import assert_kernel_as_precise_as

pytestmark = pytest.mark.skipif(
    rope_cuda.toolkit() is None, reason="needs nvcc, such as of pip install nvidia-cuda-nvcc nvidia-cuda-runtime"
)
LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
print(torch.ops.seeklet_kernels_cuda.rope_forward.default._schema)
try:
    torch.ops.seeklet_kernels_cuda.rope_forward(*[torch.zeros(1)] * 7)
except NotImplementedError as error:
    print(str(error).splitlines()[0])
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda") / "rope_cuda.so"
    rope_cuda.build(path)
    return path


def test_loads_in_any_build_of_torch_and_is_for_cuda_tensors(library: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", LOAD, str(library)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    schema, refusal = ran.stdout.splitlines()
    assert schema.startswith("seeklet_kernels_cuda::rope_forward(Tensor(a!) q_out, Tensor(b!) k_out, Tensor q,")
    assert refusal.startswith(
        "Could not run 'seeklet_kernels_cuda::rope_forward' with arguments from the 'CPU' backend"
    )


def test_holds_code_for_each_chip_that_does_not_spill(library: Path) -> None:
    pytest.importorskip("triton", reason="its package holds cuobjdump")
    from tests.kernels.ahead_of_time import TOOLS

    command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(library)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {int(number) for number in re.findall(r"arch = sm_(\d+)", usage)} == set(rope_cuda.CAPABILITIES)
    kernels = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert len(kernels) == 2 * len(rope_cuda.CAPABILITIES)
    assert all(int(registers) <= 64 and stack == local == "0" for registers, stack, local in kernels)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 3, 5, 32, 16), (1, 128, 3, 128, 64), (2, 40, 2, 16, 48)])
def test_errs_no_more_than_the_reference(shape: tuple[int, ...], library: Path) -> None:
    batch, heads, positions, nope, rotated = shape
    torch.ops.load_library(library)
    shapes = (
        (batch, positions, heads, nope + rotated),
        (batch, positions, heads, nope),
        (batch, positions, 1, rotated),
    )
    inputs = [torch.randn(each, dtype=torch.float64).transpose(1, 2) for each in shapes]
    angles = torch.rand(1, positions, rotated // 2) * 6
    tables = [torch.cat((table, table), dim=-1).bfloat16() for table in (angles.cos(), angles.sin())]

    def ours(*given: torch.Tensor) -> torch.Tensor:
        q, k_nope, k_rope = given
        cos, sin = (table.cuda() for table in tables)
        return torch.stack(rope_cuda.assemble_query_key(q, k_nope, k_rope, cos, sin, True))

    def plain(*given: torch.Tensor) -> torch.Tensor:
        q, k_nope, k_rope = given
        cos, sin = (table.to(q.dtype) for table in tables)
        return torch.stack(reference.assemble_query_key(q, k_nope, k_rope, cos, sin, True))

    assert_kernel_as_precise_as(ours, plain, inputs, torch.bfloat16, "cuda")
