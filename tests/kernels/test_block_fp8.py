"""Block-fp8 against a naive loop over blocks, for sizes that are and that are not multiples of the block."""

import pytest
import torch

from seeklet.modeling.kernels.block_fp8.reference import dequantize, quantize, requantize, scale_shape

# 576 and 1536 rows are V3's kv_a_proj_with_mqa and q_a_proj; 144 and 448 are sizes where rows / scale rows misleads.
SHAPES = [(576, 256), (144, 448), (448, 144), (256, 384), (1, 1), (129, 127), (5, 300)]


def naive_dequantize(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the values in float64, element by element from the definition."""
    rows, columns = torch.meshgrid(torch.arange(codes.shape[0]), torch.arange(codes.shape[1]), indexing="ij")
    return codes.double() * scale.double()[rows // 128, columns // 128]


def naive_scale(weight: torch.Tensor) -> torch.Tensor:
    rows, columns = scale_shape(weight.shape[0], weight.shape[1])
    blocks = [
        [weight[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)].abs().max() for j in range(columns)]
        for i in range(rows)
    ]
    return torch.tensor(blocks) / 448


def bits(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8)


def draw(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return weights whose blocks differ in size by powers of ten."""
    rows, columns = scale_shape(*shape)
    sizes = 10.0 ** torch.randint(-6, 3, (rows, columns))
    return (
        torch.randn(shape) * sizes.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    ).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_dequantized_values_are_code_times_scale(shape: tuple[int, int]) -> None:
    codes = torch.randn(shape).mul(100).to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape(*shape)) + 0.01
    expected = naive_dequantize(codes, scale)
    # A code has 4 significant bits and a scale 24: fp32 rounds their product once, and bf16 that once more.
    assert torch.equal(dequantize(codes, scale, torch.float32), expected.float())
    assert torch.equal(dequantize(codes, scale, torch.bfloat16), expected.float().bfloat16())
    assert torch.equal(dequantize(codes, scale, torch.float64), expected.float().double())


@pytest.mark.parametrize("scale", [1.0, 1.37e-4, 3.1e-30, 2.0**-126])
def test_every_code_is_decoded(scale: float) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    expected = codes.float() * scale
    finite = ~expected.isnan()
    without_nan = codes.view(torch.uint8)[:, finite[0]].view(torch.float8_e4m3fn)
    scales = torch.full(scale_shape(1, without_nan.shape[1]), scale)
    assert torch.equal(dequantize(without_nan, scales, torch.float32), expected[:, finite[0]])
    # -0.0 stays negative.
    assert dequantize(codes[:, 128:129], scales[:, :1], torch.float32).signbit().all()
    decoded = dequantize(codes, torch.full((1, 2), scale), torch.float32)
    assert torch.equal(decoded.isnan(), expected.isnan())
    assert torch.equal(decoded[finite], expected[finite])


def test_dequantize_writes_into_any_strides() -> None:
    codes, scale = quantize(draw((200, 300)))
    out = torch.full((300, 200), float("nan")).t()
    assert dequantize(codes, scale, out=out) is out
    assert torch.equal(out, naive_dequantize(codes, scale).float())
    transposed = codes.t().contiguous().t()
    assert torch.equal(dequantize(transposed, scale, torch.float32), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantize_scales_each_block_to_448(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = draw(shape, dtype)
    codes, scale = quantize(weight)
    assert torch.equal(scale, naive_scale(weight.float()))
    expected = (weight.float() / naive_dequantize(torch.ones(shape).to(torch.float8_e4m3fn), scale).float()).clamp(
        -448, 448
    )
    assert torch.equal(bits(codes), bits(expected.to(torch.float8_e4m3fn)))
    # e4m3 has 3 explicit bits of mantissa: half a step is 1/16 of the value, and 2^-10 of a scale near zero.
    error = (naive_dequantize(codes, scale) - weight.double()).abs()
    step = naive_dequantize(torch.ones(shape).to(torch.float8_e4m3fn), scale)
    assert (error <= (weight.double().abs() / 16).clamp(min=step * 2**-10) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_untouched_weights_are_requantized_bit_by_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0x80
    # Scales of somebody else's choice: nothing says that the largest code of a block is 448.
    scale = torch.rand(scale_shape(*shape)) * 1e-3 + 1e-5
    weight = dequantize(codes.view(torch.float8_e4m3fn), scale, dtype)
    again, same_scale = requantize(weight, scale)
    assert torch.equal(bits(again), codes)
    assert torch.equal(same_scale, scale)


def test_only_trained_blocks_change() -> None:
    codes, scale = quantize(draw((300, 300)))
    weight = dequantize(codes, scale, torch.bfloat16)
    weight[140, 260] = 2 * weight[128:256, 256:].abs().max()
    again, new_scale = requantize(weight, scale)
    changed = torch.zeros(3, 3, dtype=torch.bool)
    changed[1, 2] = True
    assert torch.equal(new_scale != scale, changed)
    assert new_scale[1, 2] == weight[128:256, 256:].float().abs().max() / 448
    outside = ~changed.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :300]
    assert torch.equal(bits(again)[outside], bits(codes)[outside])
    assert dequantize(again, new_scale, torch.bfloat16)[140, 260] == weight[140, 260]


def test_zeros_and_tiny_values_have_a_usable_scale() -> None:
    weight = torch.zeros(128, 384)
    weight[:, 128:256] = 1e-44
    codes, scale = quantize(weight)
    assert scale.tolist() == [[1.0, 2.0**-126, 1.0]]
    assert torch.equal(dequantize(codes, scale, torch.float32), torch.zeros(128, 384))
    again, same = requantize(torch.zeros(128, 384), scale)
    assert torch.equal(same, scale)
    assert not bits(again).any()


def test_scales_are_powers_of_two_where_asked() -> None:
    weight = draw((200, 200))
    codes, scale = quantize(weight, power_of_two=True)
    assert torch.equal(torch.log2(scale), torch.log2(scale).round())
    plain = naive_scale(weight)
    assert ((scale >= plain) & (scale < 2 * plain)).all()
    assert codes.float().abs().max() <= 448


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_cannot_be_stored_is_refused(value: float) -> None:
    weight = torch.ones(4, 4)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="infinity or a NaN"):
        quantize(weight)


@pytest.mark.parametrize(("weight", "scale"), [((576, 256), (4, 2)), ((576, 256), (2, 5)), ((4, 4, 4), (1, 1))])
def test_scales_of_another_shape_are_refused(weight: tuple[int, ...], scale: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scales of shape"):
        dequantize(torch.zeros(weight).to(torch.float8_e4m3fn), torch.ones(scale))
