"""Matrices in blocks of 4 or 8 bits by bitsandbytes: the only place that calls it, on CPU and CUDA.

A row of a matrix (R, C) is cut into blocks of 64 numbers, of 32 where 64 does not divide C. Each block has its largest
magnitude, in fp32, and codes: nf4 and fp4 are the 4-bit types of QLoRA (arXiv:2305.14314), two codes a byte; int8 is
bitsandbytes' 8-bit blockwise type (arXiv:2110.02861). Not LLM.int8, which rounds activations too: gradients would not
be those of any matrix. With blocks of 64 a weight takes 4.5 or 8.5 bits.

Quantised twice (section 3 of the first paper), the magnitudes of a row take 8 bits each, equal steps up to the largest
of them, which follows in fp32: about 0.14 bits a weight in place of 0.5 in rows of thousands, none won in rows of a
block. The blocks of the paper and of bitsandbytes are 256 magnitudes of any rows; a row's own can be written by
themselves, as halves of a stacked matrix are read.
"""

# R rows, C columns

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .errors import ConfigError

Quantization = Literal["nf4", "fp4", "int8"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
BLOCKS = (64, 32)
# The largest magnitude of a row in fp32, as bytes.
ROW_BYTES = 4
# bitsandbytes on a CPU compares each number with all 16 codes at once, 64 bytes a number: few numbers at a time.
CHUNK = 1 << 17
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_quantization(quantization: str) -> Quantization:
    """Return `quantization`.

    Raises:
        ConfigError: there is no such type, or bitsandbytes is not installed.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization is {quantization!r}; allowed: {', '.join(QUANTIZATIONS)}")
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantization: {quantization} needs bitsandbytes, which is not installed; "
            'pip install "seeklet[quantization]"'
        )
    # By one thread: the command line lets it be imported when it is first used, which Python 3.11 does not lock.
    _functional()
    return cast(Quantization, quantization)


def block_size(columns: int, name: str) -> int:
    """Return how many numbers of a row of the matrix `name` share a scale.

    Raises:
        ConfigError: its rows cannot be cut into blocks.
    """
    for size in BLOCKS:
        if columns % size == 0:
            return size
    raise ConfigError(
        f"{name} cannot be quantised: its rows have {columns} numbers; allowed: multiples of {BLOCKS[-1]}"
    )


def code_columns(columns: int, quantization: Quantization) -> int:
    """Return how many bytes of codes a row of `columns` numbers has."""
    return columns if quantization == "int8" else columns // 2


def quantize(
    matrix: torch.Tensor, quantization: Quantization, block: int, twice: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (R, C or C / 2), uint8, and largest magnitudes (R, C / block), fp32, of `matrix` (R, C).

    The magnitudes are bytes (R, C / block + 4) where they are quantised, too.
    """
    functional = _functional()
    rows, columns = matrix.shape
    step = max(1, CHUNK // columns) if matrix.device.type == "cpu" else rows
    codes, largest = [], []
    for part in matrix.contiguous().split(step):
        if quantization == "int8":
            made, state = functional.quantize_blockwise(part, blocksize=block)
        else:
            made, state = functional.quantize_4bit(part, blocksize=block, quant_type=quantization)
        codes.append(made.view(part.shape[0], -1))
        largest.append(cast(torch.Tensor, state.absmax).view(part.shape[0], -1))
    return torch.cat(codes), _in_8_bits(torch.cat(largest)) if twice else torch.cat(largest)


def dequantize(
    codes: torch.Tensor, largest: torch.Tensor, quantization: Quantization, dtype: torch.dtype
) -> torch.Tensor:
    """Return the matrix (R, C) in `dtype` that `quantize` made codes and largest magnitudes of."""
    rows, columns = codes.shape[0], codes.shape[1] * (1 if quantization == "int8" else 2)
    if codes.is_meta or isinstance(codes, FakeTensor):
        # A shape alone, as a plan has it: bitsandbytes need not be there.
        return codes.new_empty(rows, columns, dtype=dtype)
    functional = _functional()
    if largest.dtype == torch.uint8:
        largest = _from_8_bits(largest)
    known = dtype if dtype in _FLOATS else torch.float32
    state = functional.QuantState(
        absmax=largest.reshape(-1),
        shape=torch.Size((rows, columns)),
        dtype=known,
        blocksize=columns // largest.shape[1],
        code=_map_8bit(codes.device) if quantization == "int8" else None,
        quant_type=quantization,
    )
    if quantization == "int8":
        return functional.dequantize_blockwise(codes, state).to(dtype)
    return functional.dequantize_4bit(codes.reshape(-1, 1), state).to(dtype)


def _in_8_bits(largest: torch.Tensor) -> torch.Tensor:
    top = largest.amax(1, keepdim=True)
    steps = (largest / top.clamp_min(torch.finfo(torch.float32).tiny) * 255).round().to(torch.uint8)
    return torch.cat([steps, top.view(torch.uint8)], 1)


def _from_8_bits(stored: torch.Tensor) -> torch.Tensor:
    top = stored[:, -ROW_BYTES:].contiguous().view(torch.float32)
    return stored[:, :-ROW_BYTES] * (top / 255)


def _functional() -> Any:
    # By name, as it is an extra: type checkers need not have it.
    return import_module("bitsandbytes.functional")


def _map_8bit(device: torch.device) -> torch.Tensor:
    functional = _functional()
    # bitsandbytes' own cache, which its quantize_blockwise fills likewise.
    known = functional.name2qmap.get("dynamic")
    known = functional.create_dynamic_map() if known is None else known
    # Kept where it is used: a copy for each matrix would hold up a GPU.
    functional.name2qmap["dynamic"] = moved = known.to(device)
    return moved
