"""The bench model, ours and transformers' own on the same weights, and one MLA layer at V3's head sizes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from benchmarks.timing import Comparison, compare, seconds
from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from seeklet.modeling.attention import SeekletAttention
from seeklet.modeling.cache import LatentCache

# 84M parameters, 22M active: large enough that products dominate, small enough for two cores.
SIZES: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "kv_lora_rank": 128,
    "q_lora_rank": 192,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
}
# V3's attention but for the hidden size, which only the projections outside the attention see.
V3_HEADS: dict[str, Any] = {"hidden_size": 1024, "q_lora_rank": 384, "num_hidden_layers": 1}
CONTEXT = 4096


# transformers' settings that may be its best. Its "batched_mm" copies an expert's weights for every token.
SETTINGS = [(attention, experts) for attention in ("sdpa", "eager") for experts in ("grouped_mm", "eager")]
SETTINGS_ONE_TOKEN = [*SETTINGS, ("sdpa", "batched_mm")]


def stock_model(dtype: torch.dtype) -> DeepseekV3ForCausalLM:
    """Return transformers' model at the bench sizes."""
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM._from_config(DeepseekV3Config(**SIZES), dtype=dtype)


def choose_fastest(stock: DeepseekV3ForCausalLM, run: Callable[[], object], settings: list[tuple[str, str]]) -> str:
    """Return the name of the setting in which `run` is fastest (best of three), and leave `stock` in it."""
    best: dict[tuple[str, str], float] = {}
    for setting in settings:
        use(stock, setting)
        run()
        best[setting] = min(seconds(run) for _ in range(3))
    fastest = min(best, key=lambda setting: best[setting])
    use(stock, fastest)
    return "+".join(fastest)


def use(stock: DeepseekV3ForCausalLM, setting: tuple[str, str]) -> None:
    """Set transformers' attention and experts implementations."""
    stock.set_attn_implementation(setting[0])
    stock.set_experts_implementation(setting[1])


def our_model(dtype: torch.dtype) -> SeekletForCausalLM:
    """Return our model at the bench sizes. The balance loss is off: stock has none to compute."""
    torch.manual_seed(0)
    return SeekletForCausalLM._from_config(SeekletConfig(**SIZES, balance_loss_weight=0.0), dtype=dtype)


def both(dtype: torch.dtype) -> tuple[SeekletForCausalLM, DeepseekV3ForCausalLM]:
    """Return ours and stock with the same weights."""
    stock, ours = stock_model(dtype), our_model(dtype)
    ours.load_state_dict(stock.state_dict())
    return ours, stock


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Run one full training step, B=4 T=256: forward, backward, AdamW; other tokens every time."""
    tokens = torch.randint(2, SIZES["vocab_size"], (4, 256))
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return PyTorch's fused AdamW, several times faster on CPU than its default: the better setting of both."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def compare_training(dtype: torch.dtype, target: float, repeats: int) -> Comparison:
    """Return the comparison of a full training step, B=4 T=256."""
    ours, stock = both(dtype)
    for model in (ours, stock):
        model.train()
    ours_optimizer, stock_optimizer = adamw(ours), adamw(stock)
    setting = choose_fastest(stock, lambda: train_step(stock, stock_optimizer), SETTINGS)
    return compare(
        f"training step, B=4 T=256, {_name(dtype)} (peer: {setting})",
        target,
        lambda: train_step(ours, ours_optimizer),
        lambda: train_step(stock, stock_optimizer),
        repeats,
    )


@torch.inference_mode()
def compare_prefill(dtype: torch.dtype, target: float, repeats: int) -> Comparison:
    """Return the comparison of a forward pass over prompts, B=4 T=512, logits of the last token."""
    ours, stock = both(dtype)
    for model in (ours, stock):
        model.eval()
    tokens = torch.randint(2, SIZES["vocab_size"], (4, 512))
    run = [lambda m=m: m(tokens, use_cache=False, logits_to_keep=1) for m in (ours, stock)]
    setting = choose_fastest(stock, run[1], SETTINGS)
    return compare(f"prefill, B=4 T=512, {_name(dtype)} (peer: {setting})", target, run[0], run[1], repeats)


@torch.inference_mode()
def compare_decode(dtype: torch.dtype, target: float, repeats: int) -> Comparison:
    """Return the comparison of decoding one token at a context of 4,096, each with its default dynamic cache."""
    ours, stock = both(dtype)
    for model in (ours, stock):
        model.eval()
    prompt = torch.randint(2, SIZES["vocab_size"], (1, CONTEXT))
    caches = [m(prompt, use_cache=True, logits_to_keep=1).past_key_values for m in (ours, stock)]
    token = prompt[:, :1]
    run = [lambda m=m, c=c: m(token, past_key_values=c) for m, c in zip((ours, stock), caches, strict=True)]
    setting = choose_fastest(stock, run[1], SETTINGS_ONE_TOKEN)
    name = f"decode at T={CONTEXT}, B=1, {_name(dtype)} (peer: {setting})"
    return compare(name, target, run[0], run[1], repeats)


@torch.inference_mode()
def compare_mla_layer(dtype: torch.dtype, target: float, repeats: int) -> Comparison:
    """Return the comparison of one MLA layer decoding at V3's head sizes: 128 heads, latent 512 + 64, T=4096."""
    torch.manual_seed(0)
    stock_config, config = DeepseekV3Config(**V3_HEADS), SeekletConfig(**V3_HEADS)
    stock_config._attn_implementation = config._attn_implementation = "sdpa"
    stock = DeepseekV3Attention(stock_config, 0).to(dtype).eval()
    ours = SeekletAttention(config, 0).to(dtype).eval()
    ours.load_state_dict(stock.state_dict())
    latent, rope = (torch.randn(1, 1, CONTEXT, size).to(dtype) for size in (512, 64))
    caches = (LatentCache(1), DynamicCache())
    for cache in caches:
        cache.update(latent, rope, 0)
    hidden = torch.randn(1, 1, V3_HEADS["hidden_size"]).to(dtype) / 2
    angles = torch.randn(1, 1, 32).repeat(1, 1, 2)
    position = (angles.cos().to(dtype), angles.sin().to(dtype))
    run = [lambda m=m, c=c: m(hidden, position, None, c) for m, c in zip((ours, stock), caches, strict=True)]
    return compare(f"one MLA layer, V3 heads, decode at T={CONTEXT}, {_name(dtype)}", target, run[0], run[1], repeats)


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
