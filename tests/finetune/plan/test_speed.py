"""Hours and dollars against what DeepSeek and Meta have published, with one efficiency for both."""

import pytest

from seeklet.finetune.errors import RecipeError
from seeklet.finetune.plan.cluster import known_gpus, make_cluster
from seeklet.finetune.plan.counts import TokenFlops, count_flops
from seeklet.finetune.plan.speed import EFFICIENCY, Work, decode_seconds_per_token, make_bill, seconds_per_token

H800, H100 = known_gpus()["h800"], known_gpus()["h100"]
# Context extension of V3 (report, section 4.3): 1,000 steps of 1,920 sequences of 32K, then of 480 of 128K.
EXTENSIONS = ((32_768, 1000 * 1920 * 32_768), (131_072, 1000 * 480 * 131_072))
# Not derived: the report says nothing of the tokens of its post-training.
POST_TRAINING_HOURS = 5_000


def gpu_hours(model, length, tokens, gpu):
    seconds = seconds_per_token(count_flops(model, length), Work(), gpu, EFFICIENCY)
    return make_bill(tokens, seconds, gpu, 2048).gpu_hours


def test_deepseek_v3_costs_what_the_report_says(meta_model):
    model = meta_model("deepseek-v3")
    pre_training = gpu_hours(model, 4096, 14.8e12, H800)
    assert gpu_hours(model, 4096, 1e12, H800) == pytest.approx(180e3, rel=0.05)
    assert pre_training == pytest.approx(2.664e6, rel=0.05)
    in_all = pre_training + sum(gpu_hours(model, *each, H800) for each in EXTENSIONS) + POST_TRAINING_HOURS
    assert in_all == pytest.approx(2.788e6, rel=0.05)
    assert H800.price_per_hour == 2
    assert in_all * 2 == pytest.approx(5.576e6, rel=0.05)


def test_llama_405b_follows_from_the_same_efficiency(meta_model):
    llama = gpu_hours(meta_model("llama-3.1-405b"), 8192, 15.6e12, H100)
    assert llama == pytest.approx(30.84e6, rel=0.15)
    v3 = gpu_hours(meta_model("deepseek-v3"), 4096, 14.8e12, H800)
    # "About one tenth": both from their configs.
    assert 1 / 12 < v3 / llama < 1 / 9


def test_a_bill_by_hand():
    flops = TokenFlops(linear=8e9, head=1e9, attention=1e9)
    # 10 GFLOP x (1 + 1 + 1) at half of 989.4 TFLOP/s.
    seconds = seconds_per_token(flops, Work(backward=1, recompute=1), H100, 0.5)
    assert seconds == pytest.approx(3e10 / 494.7e12)
    bill = make_bill(1e9, seconds, H100, 8)
    assert bill.gpu_hours == pytest.approx(1e9 * 3e10 / 494.7e12 / 3600)
    assert bill.hours == pytest.approx(bill.gpu_hours / 8)
    assert bill.energy_kwh == pytest.approx(bill.gpu_hours * 0.7)
    assert bill.cost == pytest.approx(bill.gpu_hours * 2.95)


def test_decoding_reads_or_computes():
    # 60 GB of weights for 10 sequences and 1 GB of cache each at 0.6 x 3,350 GB/s: 7 GB a token.
    reading = decode_seconds_per_token(60e9, 1e9, 10, 1e9, H100)
    assert reading == pytest.approx(7 / (0.6 * 3350))
    assert decode_seconds_per_token(1.0, 1.0, 10, 4e12, H100, 0.4) == pytest.approx(4 / (989.4 * 0.4))


def test_clusters_are_of_one_kind_and_even():
    cluster = make_cluster("H200", 16)
    assert (cluster.nodes, cluster.gpus_per_node, cluster.gpu.memory_mib) == (2, 8, 143771)
    assert make_cluster("h100", 4, price_per_hour=1.5).gpu.price_source == "--price"
    for gpu, num_gpus, nodes, words in (
        ("h300", 8, None, r"--gpu is h300; allowed: a100, b200, h100, h20, h200, h800"),
        ("h100,h200", 8, None, "one kind, as the slowest"),
        ("h200", 12, 5, "as many GPUs on each node"),
        ("h200", 0, None, "at least 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            make_cluster(gpu, num_gpus, nodes)
