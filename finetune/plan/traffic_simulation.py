"""Expert-parallel traffic of real routing: traces of a small trained model, its experts laid out over GPUs."""

# L layers, N tokens, K experts chosen per token, E experts

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from seeklet.modeling import SeekletConfig, SeekletForCausalLM
from seeklet.modeling.routing_record import record_routing

from ..demo.tokenizer import build_tokenizer

STEPS, ROWS, LENGTH = 150, 8, 128
# So many that chance makes no GPU much fuller than another.
TRACED_ROWS = 32
# What experts are laid out over, and V3's were in training.
SIMULATED_NODES, SIMULATED_GPUS = 8, 8
# V3's own: 8 of 256 experts in 4 of 8 groups.
NUM_EXPERTS, TOP_K, GROUPS, OPEN_GROUPS = 256, 8, 8, 4


@dataclass(frozen=True)
class Variant:
    """A way to route."""

    name: str
    limited: bool
    """Whether a token keeps to `OPEN_GROUPS` groups."""
    balanced: bool
    """Whether router biases and the balance loss even out the load while training."""


VARIANTS = (
    Variant("node limit and balance (V3)", limited=True, balanced=True),
    Variant("balance, no node limit", limited=False, balanced=True),
    Variant("node limit, no balance", limited=True, balanced=False),
    Variant("neither", limited=False, balanced=False),
)


@dataclass(frozen=True)
class Trace:
    """What the routers of a trained model chose on texts that it had not seen."""

    variant: Variant
    choices: torch.Tensor
    """(L, N, K)."""
    loss: float
    """The last of training."""


@dataclass(frozen=True)
class Measured:
    """Traffic of a trace on a layout."""

    nodes_per_token: float
    """That hold at least one of its experts."""
    gpus_per_token: float
    fullest_gpu: float
    """Its tokens over the mean, for one layer and a batch; a step takes as long as the fullest."""
    fullest_node: float


def nano_config(variant: Variant, vocab_size: int) -> SeekletConfig:
    """Return a nano model with as many experts, groups and choices as V3, of 16 numbers each."""
    return SeekletConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=256,
        moe_intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        q_lora_rank=48,
        kv_lora_rank=32,
        qk_nope_head_dim=24,
        qk_rope_head_dim=8,
        v_head_dim=24,
        first_k_dense_replace=1,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        n_group=GROUPS if variant.limited else 1,
        topk_group=OPEN_GROUPS if variant.limited else 1,
        max_position_embeddings=LENGTH,
        initializer_range=0.06,
        # Faster than V3's 0.001, since there are a hundred steps and not a hundred thousand.
        bias_update_speed=0.02 if variant.balanced else 0.0,
        balance_loss_weight=1e-3 if variant.balanced else 0.0,
    )


def record_trace(variant: Variant, seed: int = 0, steps: int = STEPS, step_done: Callable[[], object] = int) -> Trace:
    """Return the choices on held-out texts of a nano model trained for `steps` steps on sums with running totals."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = SeekletForCausalLM(nano_config(variant, len(tokenizer))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    texts = _chain_sums(random.Random(2 * seed))
    loss = torch.zeros(())
    for _ in range(steps):
        ids = _next_rows(texts, tokenizer, ROWS)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_router_bias()
        step_done()
    held_out = _next_rows(_chain_sums(random.Random(2 * seed + 1)), tokenizer, TRACED_ROWS)
    with torch.inference_mode(), record_routing(model.eval(), TRACED_ROWS, LENGTH) as record:
        model(input_ids=held_out, use_cache=False)
    return Trace(variant, record.choices.flatten(1, 2).long(), float(loss.detach()))


def measure_trace(trace: Trace, nodes: int, gpus_per_node: int) -> Measured:
    """Return the traffic of a trace whose experts lie in order on `nodes` x `gpus_per_node` GPUs."""
    return measure_choices(trace.choices, NUM_EXPERTS, nodes, gpus_per_node)


def measure_choices(choices: torch.Tensor, num_experts: int, nodes: int, gpus_per_node: int) -> Measured:
    """Return the traffic of `choices` (L, N, K) of `num_experts` experts that lie in order on nodes and GPUs."""
    gpus = nodes * gpus_per_node
    on_gpu = choices * gpus // num_experts
    on_node = on_gpu // gpus_per_node
    return Measured(
        nodes_per_token=_distinct(on_node, nodes),
        gpus_per_token=_distinct(on_gpu, gpus),
        fullest_gpu=_fullest(on_gpu, gpus),
        fullest_node=_fullest(on_node, nodes),
    )


def _distinct(places: torch.Tensor, number: int) -> float:
    """Return how many different places a token's choices lie in, on average."""
    return torch.nn.functional.one_hot(places, number).amax(2).sum(-1).float().mean().item()


def _fullest(places: torch.Tensor, number: int) -> float:
    """Return the load of the fullest place over the mean, averaged over layers."""
    load = torch.nn.functional.one_hot(places, number).sum((1, 2)).float()
    return (load.amax(-1) / load.mean(-1)).mean().item()


def _chain_sums(draw: random.Random) -> Iterator[str]:
    """Yield sums of four to seven digits with their running totals: 4+7+1+9=4+7=11;11+1=12;12+9=21;"""
    while True:
        digits = [draw.randint(1, 9) for _ in range(draw.randint(4, 7))]
        total, steps = digits[0], []
        for digit in digits[1:]:
            steps.append(f"{total}+{digit}={total + digit};")
            total += digit
        yield "+".join(map(str, digits)) + "=" + "".join(steps)


def _next_rows(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, rows: int) -> torch.Tensor:
    """Return the next texts, one behind the other, as rows of `LENGTH` tokens: (rows, LENGTH)."""
    ids: list[int] = []
    while len(ids) < rows * LENGTH:
        ids.extend(tokenizer(next(texts), add_special_tokens=False)["input_ids"])
    return torch.tensor(ids[: rows * LENGTH]).view(rows, LENGTH)
