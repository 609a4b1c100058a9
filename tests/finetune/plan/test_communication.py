"""Traffic against sums by hand, and the simulation against traces whose answer is plain."""

from itertools import combinations

import pytest
import torch

from seeklet.finetune.plan.cluster import make_cluster
from seeklet.finetune.plan.communication import (
    expected_spread,
    expert_parallel_traffic,
    sharded_traffic,
)
from seeklet.finetune.plan.model_config import published_config
from seeklet.finetune.plan.traffic_simulation import measure_choices


def test_spread_is_the_mean_over_all_choices():
    """Of 8 experts in 4 groups, 3 chosen, all groups open; then with the two first groups open."""
    spreads = [len({expert // 2 for expert in chosen}) for chosen in combinations(range(8), 3)]
    assert expected_spread(4, 8, 3, 4) == pytest.approx(sum(spreads) / len(spreads))
    spreads = [len({expert // 2 for expert in chosen}) for chosen in combinations(range(4), 3)]
    assert expected_spread(4, 8, 3, 2) == pytest.approx(sum(spreads) / len(spreads))


def test_node_limit_lowers_what_crosses_the_network():
    config, cluster = published_config("deepseek-v3"), make_cluster("h800", 64)
    limited = expert_parallel_traffic(config, cluster, 64, 1)
    free = expert_parallel_traffic(config, cluster, 64, 1, limited=False)
    # 59 layers with the MTP module's, fp8 there and bf16 back, to 7 of 8 of the nodes hit.
    per_node = 59 * 7168 * 3 * 7 / 8
    assert limited.across_nodes == pytest.approx(per_node * expected_spread(8, 256, 8, 4))
    assert free.across_nodes == pytest.approx(per_node * expected_spread(8, 256, 8, 8))
    assert limited.across_nodes < 0.7 * free.across_nodes
    inside = expert_parallel_traffic(config, make_cluster("h800", 8), 8, 1)
    assert inside.across_nodes == 0 < inside.within_node
    assert expert_parallel_traffic(config, cluster, 1, 1).across_nodes == 0


def test_fsdp_gathers_by_hand():
    """100 bytes of weights twice and 20 of gradients, over 10 tokens; each node of 8 takes in half of it once."""
    traffic = sharded_traffic(make_cluster("h100", 16), 100, 20, 10)
    assert traffic.across_nodes == pytest.approx(220 / 2 / 8 / 10)
    assert traffic.within_node + traffic.across_nodes == pytest.approx(220 * 15 / 16 / 10)


def test_traces_whose_answer_is_plain():
    # Of 8 experts on 2 nodes of 2 GPUs: both of a token on one GPU, on two GPUs of a node, on two nodes.
    choices = torch.tensor([[[0, 1], [0, 2], [1, 4]]])
    found = measure_choices(choices, 8, 2, 2)
    assert found.nodes_per_token == pytest.approx((1 + 1 + 2) / 3)
    assert found.gpus_per_token == pytest.approx((1 + 2 + 2) / 3)
    # GPU 0 gets 4 of 6 choices, and four GPUs would get 1.5 each; node 0 gets 5 of 6.
    assert found.fullest_gpu == pytest.approx(4 / 1.5)
    assert found.fullest_node == pytest.approx(5 / 3)
