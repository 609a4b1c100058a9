"""Every operator as a plain differentiable function: its kernel on a GPU that has one, its reference elsewhere.

`mla_attention_from_latent` takes `kv_b_proj.weight` in place of keys and values, and keeps neither for backward: for
layers whose weight is plain. Others expand, and take `mla_attention`.
"""

from .block_fp8.op import dequantize, quantize, quantize_activations
from .grouped_experts.op import grouped_experts
from .grouped_fp8.op import grouped_fp8, grouped_fp8_quantized
from .grouped_lora.op import LowRank, grouped_lora
from .linear.op import fp8_linear, fp8_linear_quantized
from .linear_cross_entropy.op import linear_cross_entropy
from .linear_log_probs.op import linear_log_probs
from .mla_attention.from_latent import mla_attention_from_latent
from .mla_attention.op import mla_attention
from .mla_decode.op import mla_decode
from .rms_norm.op import add_rms_norm, rms_norm
from .rope.op import apply_rope, assemble_query_key
from .router.op import route, route_and_count
from .swiglu.op import swiglu

__all__ = [
    "LowRank",
    "add_rms_norm",
    "apply_rope",
    "assemble_query_key",
    "dequantize",
    "fp8_linear",
    "fp8_linear_quantized",
    "grouped_experts",
    "grouped_fp8",
    "grouped_fp8_quantized",
    "grouped_lora",
    "linear_cross_entropy",
    "linear_log_probs",
    "mla_attention",
    "mla_attention_from_latent",
    "mla_decode",
    "quantize",
    "quantize_activations",
    "rms_norm",
    "route",
    "route_and_count",
    "swiglu",
]
