"""Bytes that each GPU sends, within its node and to others, for a way of sharing a model."""

from dataclasses import dataclass
from math import comb
from typing import Any

from transformers import PreTrainedConfig

from seeklet.modeling import SeekletConfig

from .cluster import Cluster


@dataclass(frozen=True)
class Traffic:
    """Bytes per token that a GPU sends (and as many it receives), for each token that it passes itself."""

    within_node: float
    across_nodes: float

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.within_node + other.within_node, self.across_nodes + other.across_nodes)

    def times(self, factor: float) -> "Traffic":
        """Return so many times as much."""
        return Traffic(self.within_node * factor, self.across_nodes * factor)

    def seconds(self, cluster: Cluster) -> float:
        """Return how long it takes at the links' whole speed; the two kinds of links work at the same time."""
        gpu = cluster.gpu
        return max(self.within_node / (gpu.nvlink_gb_per_s * 1e9), self.across_nodes / (gpu.network_gb_per_s * 1e9))


NO_TRAFFIC = Traffic(0.0, 0.0)


def expected_spread(groups: int, experts: int, top_k: int, open_groups: int) -> float:
    """Return over how many of `groups` equal groups a token's experts are spread, chosen evenly among open groups.

    A token may use `open_groups` of the groups (node-limited routing: `topk_group`); its `top_k` experts are any of
    theirs. All groups open: no limit.

    >>> round(expected_spread(8, 256, 8, 4), 3)
    3.629
    >>> round(expected_spread(8, 256, 8, 8), 3)
    5.295
    """
    per_group = experts // groups
    chosen_from = open_groups * per_group
    missed = comb(chosen_from - per_group, top_k) / comb(chosen_from, top_k)
    return open_groups * (1 - missed)


def expert_parallel_traffic(
    config: PreTrainedConfig, cluster: Cluster, expert_parallel: int, dispatch_bytes: int, limited: bool = True
) -> Traffic:
    """Return what a forward pass of a token sends to experts on other GPUs and back, all layers together.

    Across nodes a token goes once to each node that it has experts on, and from there over NVLink to their GPUs
    (DeepSeek-V3 report, section 3.2.2). Groups of experts lie on nodes in order, so that `topk_group` limits nodes.

    Args:
        config: of a mixture of experts.
        cluster: whose nodes the experts are spread over.
        expert_parallel: GPUs that share one set of experts.
        dispatch_bytes: of one number on the way there: 1 in fp8, 2 in bf16; back it is always 2.
        limited: whether the router keeps to `topk_group` groups.
    """
    if expert_parallel == 1 or not isinstance(config, SeekletConfig):
        return NO_TRAFFIC
    nodes = max(1, expert_parallel // cluster.gpus_per_node)
    per_node = expert_parallel // nodes
    experts, top_k = config.n_routed_experts, config.num_experts_per_tok
    layers = config.num_hidden_layers - config.first_k_dense_replace + config.num_nextn_predict_layers
    open_nodes = nodes
    if limited and config.n_group % nodes == 0:
        open_nodes = min(nodes, config.topk_group)
    nodes_hit = expected_spread(nodes, experts, top_k, open_nodes)
    # A token's own node is one of them as often as any other.
    remote = nodes_hit * (nodes - 1) / nodes
    hidden = config.hidden_size * (dispatch_bytes + 2) * layers
    gpus_hit = (
        expected_spread(expert_parallel, experts, top_k, expert_parallel)
        if not limited
        else nodes_hit * (expected_spread(per_node, experts // nodes, max(1, round(top_k / nodes_hit)), per_node))
    )
    inside = gpus_hit * (per_node - 1) / per_node
    return Traffic(within_node=inside * hidden, across_nodes=remote * hidden)


def training_expert_traffic(
    config: PreTrainedConfig, cluster: Cluster, expert_parallel: int, recompute: bool, limited: bool = True
) -> Traffic:
    """Return the same for a whole step: there and back, gradients there and back, and what is computed again.

    In fp8 on the way there and bf16 on the way back, as DeepSeek-V3 was trained (report, section 3.3.3).
    """
    forward = expert_parallel_traffic(config, cluster, expert_parallel, 1, limited)
    return forward.times(3 if recompute else 2)


def sharded_traffic(
    cluster: Cluster, weight_bytes: int, trained_bytes: int, tokens_per_pass: int, passes: int = 2
) -> Traffic:
    """Return what FSDP gathers and reduces, per token of a pass over `tokens_per_pass` tokens.

    Every weight is gathered in the forward and once more in the backward pass (`passes`), gradients of what is trained
    are reduced. In a ring over all GPUs, a GPU sends all but its own part; of that, what enters a node crosses once.
    """
    number, nodes = cluster.num_gpus, cluster.nodes
    moved = weight_bytes * passes + trained_bytes
    sent = moved * (number - 1) / number
    across = moved * (nodes - 1) / nodes / cluster.gpus_per_node if nodes > 1 else 0.0
    return Traffic((sent - across) / tokens_per_pass, across / tokens_per_pass)


def layer_traffic(config: Any, cluster: Cluster, itemsize: int) -> Traffic:
    """Return what layers laid out over GPUs pass on: hidden states forward, their gradients back."""
    return Traffic(2.0 * config.hidden_size * itemsize * (cluster.num_gpus - 1) / cluster.num_gpus, 0.0)
