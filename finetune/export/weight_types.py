"""What weights can be written as in a GGUF file, by whom, and how large they come out."""

from importlib.util import find_spec

# Bytes a weight. Of the converter itself; `--outtype` has the list of those it writes.
CONVERTED = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "tq1_0": 54 / 256, "tq2_0": 66 / 256}
# Of llama.cpp's quantizer, which mixes types; measured by llama.cpp on Llama-3.1-8B (tools/quantize/README.md).
QUANTIZED = {
    "q2_k": 3.16 / 8,
    "q3_k_s": 3.64 / 8,
    "q3_k_m": 4.0 / 8,
    "q3_k_l": 4.3 / 8,
    "iq4_xs": 4.46 / 8,
    "iq4_nl": 4.68 / 8,
    "q4_0": 4.66 / 8,
    "q4_1": 5.13 / 8,
    "q4_k_s": 4.67 / 8,
    "q4_k_m": 4.89 / 8,
    "q5_0": 5.58 / 8,
    "q5_1": 6.05 / 8,
    "q5_k_s": 5.57 / 8,
    "q5_k_m": 5.7 / 8,
    "q6_k": 6.56 / 8,
}
BYTES = CONVERTED | QUANTIZED
# What a type that is not offered is told.
ALLOWED = ", ".join([*CONVERTED, *QUANTIZED])


def has_quantizer() -> bool:
    """Return whether llama-cpp-python, which brings llama.cpp's quantizer, is installed."""
    return find_spec("llama_cpp") is not None


def lossless_type(dtype: str) -> str:
    """Return the type that holds weights of a dtype, as safetensors call it, without loss; bf16 for fp8."""
    return {"F32": "f32", "F16": "f16"}.get(dtype, "bf16")
