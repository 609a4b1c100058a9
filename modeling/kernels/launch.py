"""How kernels are chosen, launched and compiled: where Triton runs, and what is compiled ahead of time.

What a `<op>/kernel.py` offers, and nothing else is asked of it:
- `@triton.jit` functions, and plain functions that allocate and launch, on contiguous or strided tensors alike;
- `configurations()`: the list of `Configuration`s it launches at the published shapes, in bf16 (and fp8).

`tests/kernels/test_compiled.py` compiles each of them for sm_80, sm_90 and sm_100, on a machine without a GPU too, and
holds them against the gates and against the table in `tests/kernels/compiled/<op>.json`.

Only `kernel.py` imports triton, and `op.py` imports `kernel` inside the functions that launch: triton does not come
with every build of torch.
"""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

# Types of devices that Triton kernels run on. Tests add "cpu" while they interpret.
TRITON_DEVICES = frozenset({"cuda"})
_takes_triton = True
# Chips with 99 KiB of shared memory a program: the tilings of sm_80 fit there, those of sm_90 and later ones do not.
LITTLE_SHARED_MEMORY = frozenset({86, 89, 120, 121})


class Configuration(NamedTuple):
    """One kernel as it is compiled.

    Attributes:
        name: unique within the operator, such as `forward_bf16_D7168`.
        function: the `@triton.jit` function.
        signature: type of each argument that is no constant: "*bf16", "*fp32", "*i32", "i32", "i64", "fp32", ...,
            "tensordesc<bf16[128,64]>" for a descriptor made on the host.
        constants: value of each `tl.constexpr` argument, and of those that are None.
        num_warps: as at the launch.
        num_stages: as at the launch.
        tensor_cores: whether matrix instructions must be there.
        aligned: integer arguments that are multiples of 16, as triton finds out at a launch; pointers are anyway.
        capabilities: what it is compiled for.
    """

    name: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    tensor_cores: bool = False
    aligned: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = (80, 90, 100)


def runs_triton(tensor: torch.Tensor) -> bool:
    """Return whether an operator takes its Triton kernel for this tensor, rather than the reference."""
    return _takes_triton and tensor.device.type in TRITON_DEVICES


def take_triton(yes: bool) -> None:
    """Set whether this process's operators take their kernels; also those called outside of any kernelized layer."""
    global _takes_triton
    _takes_triton = yes


def device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Return the context to launch in: Triton launches on the current device, not on that of its arguments."""
    return torch.cuda.device_of(tensor)


def num_multiprocessors(tensor: torch.Tensor) -> int:
    """Return how many programs a persistent kernel starts; four where kernels are interpreted."""
    if not tensor.is_cuda:
        return 4
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def capability(tensor: torch.Tensor) -> int:
    """Return the compute capability that kernels are chosen for, as in `sm_90`: 90; also where they are interpreted.

    86 stands for all chips with little shared memory.
    """
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    found = 10 * major + minor
    return 86 if found in LITTLE_SHARED_MEMORY else found
