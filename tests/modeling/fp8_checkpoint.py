"""Block-fp8 checkpoints as DeepSeek publishes them, and what their values are by definition."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from seeklet.modeling.checkpoint_names import is_fp8_weight
from seeklet.modeling.kernels.block_fp8.reference import scale_shape
from tests.modeling.nano import build_ours
from tests.modeling.tensors import config_of, read

# 144 rows of kv_a_proj_with_mqa, 448 of an expert, 576 of a dense MLP: none is a multiple of 128.
ODD: dict[str, Any] = {
    "hidden_size": 264,
    "kv_lora_rank": 136,
    "qk_rope_head_dim": 8,
    "moe_intermediate_size": 448,
    "intermediate_size": 576,
    "q_lora_rank": 130,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "initializer_range": 0.05,
    "num_nextn_predict_layers": 1,
}
EVEN = ODD | {
    "hidden_size": 256,
    "kv_lora_rank": 120,
    "moe_intermediate_size": 128,
    "intermediate_size": 384,
    "q_lora_rank": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 40,
    "num_nextn_predict_layers": 0,
}


def write_fp8(folder: Path, sizes: dict[str, Any]) -> Path:
    """Write a block-fp8 checkpoint as DeepSeek publishes it: random codes, and scales of nobody's rule.

    Its only tie to our own writer is the names.
    """
    model = build_ours(**sizes).bfloat16()
    model.save_pretrained(folder)
    tensors = read(folder)
    for name in [name for name in tensors if is_fp8_weight(name)]:
        codes = (torch.randn(tensors[name].shape) * 40).to(torch.float8_e4m3fn)
        tensors[name] = codes
        tensors[f"{name}_scale_inv"] = (torch.rand(scale_shape(codes.shape[0], codes.shape[1])) + 0.5) * 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantization = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    config = config_of(folder) | {"quantization_config": quantization, "auto_map": {"AutoModel": "modeling.X"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def expected_weights(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors on disk, those in fp8 as code times scale, element by element."""
    stored = read(folder)
    weights = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn:
            rows, columns = torch.meshgrid(*map(torch.arange, tensor.shape), indexing="ij")
            scale = stored[f"{name}_scale_inv"][rows // 128, columns // 128]
            weights[name] = (tensor.double() * scale.double()).float().to(dtype)
        elif not name.endswith("_scale_inv"):
            weights[name] = tensor if name.endswith("e_score_correction_bias") else tensor.to(dtype)
    return weights
