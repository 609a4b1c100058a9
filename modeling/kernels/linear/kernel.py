"""Products with frozen block-fp8 weights in Triton: codes are read as they are stored, half the bytes of bf16.

Two forward ways: weights dequantised on the way to the tensor cores, the same values as a dequantised model's; and both
operands in fp8, each 128 columns' product scaled and summed in fp32, as DeepSeek-V3 was trained (report, section 3.3).
The gradient to the input is the first way with the weight turned around. Products of plain weights are PyTorch's own.
"""

# T tokens, R outputs of the layer (rows of the weight), C its inputs, P matrices stacked by rows with scales each

import torch
import triton

from ..block_fp8.kernel import is_native
from ..block_fp8.reference import BLOCK
from ..launch import Configuration, device_of
from .programs import decoding_kernel, quantized_kernel

# Blocks of rows of the output that run at the same time, so that both operands stay in the second-level cache.
GROUP = 16


def takes(x_TK: torch.Tensor, codes: torch.Tensor) -> bool:
    """Return whether the kernels take this input; nothing is taken without rows or columns."""
    return x_TK.dtype in (torch.bfloat16, torch.float16, torch.float32) and x_TK.numel() > 0 and codes.numel() > 0


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _scale_layout(codes: torch.Tensor, scale: torch.Tensor) -> tuple[int, int, int]:
    """Return rows of each of the stacked matrices, block rows of each, block columns."""
    parts = 1 if scale.dim() == 2 else scale.shape[0]
    return codes.shape[0] // parts, scale.shape[-2], scale.shape[-1]


def _decoding_tiling(dtype: torch.dtype, tokens: int, forward: bool) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_T": 32, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2}
    if tokens <= 32:
        # Decoding text: the weight is read once, by many programs.
        block_t, block_k = 16 if tokens <= 16 else 32, 128 if forward else 64
        return {"BLOCK_T": block_t, "BLOCK_N": 64, "BLOCK_K": block_k, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_T": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}


def _decoding(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, forward: bool, native: bool | None
) -> torch.Tensor:
    x, codes, scale = _dense_rows(x), _dense_rows(codes), scale.contiguous()
    outputs, inner = codes.shape if forward else codes.shape[::-1]
    out = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=x.device)
    tiling = _decoding_tiling(x.dtype, x.shape[0], forward)
    with device_of(x):
        decoding_kernel[(triton.cdiv(x.shape[0], tiling["BLOCK_T"]) * triton.cdiv(outputs, tiling["BLOCK_N"]),)](
            x,
            codes.view(torch.uint8),
            scale,
            out,
            x.shape[0],
            outputs,
            x.stride(0),
            codes.stride(0),
            *_scale_layout(codes, scale),
            INNER=inner,
            GROUP=GROUP,
            FORWARD=forward,
            NATIVE=is_native(x) if native is None else native,
            **tiling,
        )
    return out


def forward(
    x_TC: torch.Tensor, codes_RC: torch.Tensor, scale: torch.Tensor, native: bool | None = None
) -> torch.Tensor:
    """Return `x_TC @ W.T` (T, R) for the weight W of `codes_RC` and scales (M, N) or (P, M, N), rounded as `x_TC`.

    `native` is whether the device converts float8 itself, by default what is known of it.
    """
    return _decoding(x_TC, codes_RC, scale, True, native)


def backward(
    grad_TR: torch.Tensor, codes_RC: torch.Tensor, scale: torch.Tensor, native: bool | None = None
) -> torch.Tensor:
    """Return `grad_TR @ W` (T, C), the gradient to the input; arguments are as in `forward`."""
    return _decoding(grad_TR, codes_RC, scale, False, native)


def forward_quantized(
    x_TC: torch.Tensor,
    x_scale_TN: torch.Tensor,
    codes_RC: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    native: bool | None = None,
) -> torch.Tensor:
    """Return `x @ W.T` (T, R) in `dtype` for the activations x of codes `x_TC` and scales, and W as in `forward`."""
    x, codes, scale = x_TC.contiguous(), _dense_rows(codes_RC), scale.contiguous()
    x_scale = x_scale_TN if x_scale_TN.stride(0) == 1 else x_scale_TN.t().contiguous().t()
    tokens, outputs = x.shape[0], codes.shape[0]
    out = torch.empty((tokens, outputs), dtype=dtype, device=x.device)
    layout = _scale_layout(codes, scale)
    native = is_native(x) if native is None else native
    tiling = _quantized_tiling(tokens, native)
    with device_of(x):
        quantized_kernel[(triton.cdiv(tokens, tiling["BLOCK_T"]) * triton.cdiv(outputs, tiling["BLOCK_N"]),)](
            x.view(torch.uint8),
            x_scale,
            codes.view(torch.uint8),
            scale,
            out,
            tokens,
            outputs,
            x_scale.stride(1),
            codes.stride(0),
            *layout,
            INNER=x.shape[1],
            GROUP=GROUP,
            ONE_SCALE=scale.dim() == 2 or layout[0] % BLOCK[0] == 0,
            NATIVE=native,
            **tiling,
        )
    return out


def _quantized_tiling(tokens: int, native: bool) -> dict[str, int]:
    if tokens <= 64:
        return {"BLOCK_T": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 4}
    if not native:
        # Twice as wide, decoding 128 columns of both spills 2,700 registers.
        return {"BLOCK_T": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3}
    return {"BLOCK_T": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 3}


# What is multiplied most in a layer that keeps fp8: inputs and outputs, and tokens.
PUBLISHED = {
    "v3_down": (18432, 7168, 8192),
    "v3_o_decode": (16384, 7168, 16),
    "moonlight_gate": (2048, 11264, 8192),
}


def configurations() -> list[Configuration]:
    """Return the kernels at shapes of DeepSeek-V3 and Moonlight, in bf16."""
    found = []
    whole = ["num_tokens", "num_outputs", "stride_codes", "part_rows", "part_blocks", "scale_columns"]
    shared = {"x_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": "*fp32", "out_ptr": "*bf16"}
    shared |= dict.fromkeys(whole, "i32")
    aligned = ("num_outputs", "stride_codes", "part_rows")
    for native, capabilities in ((True, (90, 100)), (False, (80,))):
        how = "native" if native else "shifts"
        for name, (inputs, outputs, tokens) in PUBLISHED.items():
            for direction in ("forward", "backward") if tokens > 32 else ("forward",):
                tiling = _decoding_tiling(torch.bfloat16, tokens, direction == "forward")
                warps, stages = tiling.pop("num_warps"), tiling.pop("num_stages")
                inner = inputs if direction == "forward" else outputs
                constants = {"INNER": inner, "GROUP": GROUP, "FORWARD": direction == "forward", "NATIVE": native}
                found.append(
                    Configuration(
                        f"{direction}_{name}_{how}",
                        decoding_kernel,
                        {**shared, "stride_x": "i32"},
                        {**tiling, **constants},
                        num_warps=warps,
                        num_stages=stages,
                        tensor_cores=True,
                        aligned=(*aligned, "stride_x"),
                        capabilities=capabilities,
                    )
                )
            tiling = _quantized_tiling(tokens, native)
            warps, stages = tiling.pop("num_warps"), tiling.pop("num_stages")
            found.append(
                Configuration(
                    f"quantized_{name}_{how}",
                    quantized_kernel,
                    {**shared, "x_ptr": "*u8", "x_scale_ptr": "*fp32", "stride_x_scale": "i32"},
                    {**tiling, "INNER": inputs, "GROUP": GROUP, "ONE_SCALE": True, "NATIVE": native},
                    num_warps=warps,
                    num_stages=stages,
                    tensor_cores=True,
                    aligned=(*aligned, "stride_x_scale"),
                    capabilities=capabilities,
                )
            )
    return found
