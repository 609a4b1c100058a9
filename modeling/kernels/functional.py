"""Every operator as a plain differentiable function: its kernel on a GPU that has one, its reference elsewhere.

`mla_attention_from_latent` takes `kv_b_proj.weight` in place of keys and values, and keeps neither for backward: for
layers whose weight is plain. Others expand, and take `mla_attention`.
"""

from .grouped_experts.op import grouped_experts
from .grouped_fp8.op import grouped_fp8, grouped_fp8_quantized
from .grouped_lora.op import LowRank, grouped_lora
from .mla_attention.from_latent import mla_attention_from_latent
from .mla_attention.op import mla_attention
from .rms_norm.op import add_rms_norm, rms_norm
from .rope.op import apply_rope, assemble_query_key
from .swiglu.op import swiglu

__all__ = [
    "LowRank",
    "add_rms_norm",
    "apply_rope",
    "assemble_query_key",
    "grouped_experts",
    "grouped_fp8",
    "grouped_fp8_quantized",
    "grouped_lora",
    "mla_attention",
    "mla_attention_from_latent",
    "rms_norm",
    "swiglu",
]
