"""Every operator as a plain differentiable function: its kernel on a GPU that has one, its reference elsewhere."""

from .grouped_experts.op import grouped_experts
from .grouped_fp8.op import grouped_fp8, grouped_fp8_quantized
from .grouped_lora.op import LowRank, grouped_lora
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
    "rms_norm",
    "swiglu",
]
