"""Parameters by part, total and active, and what a token costs to compute: counted on the model's own shapes."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from seeklet.modeling import SeekletConfig
from seeklet.modeling.moe import SeekletExperts
from seeklet.modeling.mtp import SeekletMTPLayer


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters."""

    total: int
    """Without multi-token prediction modules, as models are named by it."""
    active: int
    """Of these, what one token passes: its experts only."""
    embedding: int
    """Of the active ones, those looked up and not multiplied."""
    head: int
    """The output head, which is also the embedding where they are tied."""
    routed: int
    """In routed experts, without multi-token prediction."""
    norms: int
    """Vectors: norms and biases."""
    mtp: int
    """In multi-token prediction modules; embedding and head are shared."""
    mtp_active: int
    by_part: dict[str, int]

    @property
    def multiplied(self) -> int:
        """Return the parameters that a token is multiplied with, multi-token prediction left out."""
        return self.active - self.embedding - self.norms


def count_parameters(model: PreTrainedModel) -> Counts:
    """Return the counts of `model`, which may be on the meta device."""
    config = model.config
    share = _active_share(config)
    mtp_layers = [layer for layer in model.modules() if isinstance(layer, SeekletMTPLayer)]
    in_mtp = {id(parameter) for layer in mtp_layers for parameter in layer.parameters()}
    in_experts = {id(p) for p in _expert_parameters(model)}
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding) and head is not None
    parts: dict[str, int] = {}
    totals = dict.fromkeys(("total", "active", "routed", "norms", "mtp", "mtp_active"), 0)
    for name, parameter in model.named_parameters():
        number, expert = parameter.numel(), id(parameter) in in_experts
        active = round(number * share) if expert else number
        if id(parameter) in in_mtp:
            totals["mtp"] += number
            totals["mtp_active"] += active
            part = "multi-token prediction"
        else:
            totals["total"] += number
            totals["active"] += active
            totals["routed"] += number if expert else 0
            totals["norms"] += number if parameter.dim() == 1 else 0
            part = "routed experts" if expert else _part_of(name, parameter)
        parts[part] = parts.get(part, 0) + number
    tied = head.weight is embedding.weight
    return Counts(**totals, head=head.weight.numel(), embedding=0 if tied else embedding.weight.numel(), by_part=parts)


@dataclass(frozen=True)
class TokenFlops:
    """Floating-point operations of a forward pass, per token of a sequence; multiply and add are two."""

    linear: float
    """Of all matrix products with weights but the head's."""
    head: float
    """Of the head, and of it again for each multi-token prediction module."""
    attention: float
    """Of scores and their sum over values, causal: a token sees half the sequence on average."""

    @property
    def forward(self) -> float:
        """Return them all."""
        return self.linear + self.head + self.attention


def count_flops(model: PreTrainedModel, length: int, with_mtp: bool = True) -> TokenFlops:
    """Return what a token in sequences of `length` tokens costs in a forward pass."""
    config, counts = model.config, count_parameters(model)
    num_mtp = (getattr(config, "num_nextn_predict_layers", 0) or 0) if with_mtp else 0
    linear = counts.multiplied - counts.head + (counts.mtp_active if num_mtp else 0)
    layers = config.num_hidden_layers + num_mtp
    return TokenFlops(
        linear=2.0 * linear,
        head=2.0 * counts.head * (1 + num_mtp),
        attention=2.0 * layers * attention_width(config) * length / 2,
    )


def attention_width(config: PreTrainedConfig) -> int:
    """Return the products of one query with one key and its value, summed over the heads of a layer."""
    if isinstance(config, SeekletConfig):
        keys = config.qk_nope_head_dim + config.qk_rope_head_dim
        return config.num_attention_heads * (keys + config.v_head_dim)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_attention_heads * head


def cache_numbers(config: PreTrainedConfig) -> int:
    """Return how many numbers the cache of one token holds, in all layers: the latent and rope key, or keys, values."""
    if isinstance(config, SeekletConfig):
        return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers * 2 * (config.num_key_value_heads or config.num_attention_heads) * head


def _expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the routed experts: seeklet's, and any other stack of matrices of an MoE layer."""
    experts = [module for module in model.modules() if isinstance(module, SeekletExperts)]
    found = [parameter for module in experts for parameter in module.parameters()]
    return found or [p for name, p in model.named_parameters() if p.dim() == 3 and ".experts." in name]


def _active_share(config: PreTrainedConfig) -> float:
    experts = getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)
    return 1.0 if not experts else config.num_experts_per_tok / experts


def _part_of(name: str, parameter: nn.Parameter) -> str:
    if parameter.dim() == 1:
        return "norms and biases"
    for word, part in (
        ("embed", "embedding"),
        ("lm_head", "head"),
        ("attn", "attention"),
        ("shared_experts", "shared experts"),
        ("mlp.gate.", "routers"),
        ("mlp.router.", "routers"),
        ("mlp", "dense feed-forwards"),
    ):
        if word in name:
            return part
    return "other"
