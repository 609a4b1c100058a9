"""The what-if study: its page from a short run, its costs beside plans and sums by hand, and its traces."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from seeklet.finetune.cli import build_app
from seeklet.finetune.errors import RecipeError
from seeklet.finetune.plan import study_costs
from seeklet.finetune.plan.activations import Activations
from seeklet.finetune.plan.cluster import make_cluster
from seeklet.finetune.plan.counts import TokenFlops
from seeklet.finetune.plan.plan import make_plan
from seeklet.finetune.plan.request import read_request
from seeklet.finetune.plan.speed import Work
from seeklet.finetune.plan.study import write_study
from seeklet.finetune.plan.study_costs import (
    DISTILLATION,
    MODELS,
    NUM_GPUS,
    PRE_TRAINING,
    R1_ZERO,
    RL,
    cost_of,
    price_of,
    sampling_seconds,
)
from seeklet.finetune.plan.study_page import v3_megabytes
from seeklet.finetune.plan.traffic_simulation import OPEN_GROUPS, VARIANTS, measure_trace, record_trace


def test_the_page_is_what_was_found(tmp_path):
    said = io.StringIO()
    write_study(tmp_path, Console(file=said), steps=1)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert [size["name"] for size in found["sizes"]] == list(MODELS)
    for size in found["sizes"]:
        for job, prices in size["prices"].items():
            assert f"## {job[0].upper()}{job[1:]}" in page
            for price in prices:
                assert price["num_gpus"] in NUM_GPUS
                assert price["gpu_hours"] == pytest.approx(price["days"] * 24 * price["num_gpus"])
                assert price["cost"] == pytest.approx(price["gpu_hours"] * 2.95)
    # "About one tenth" is on the page as it is derived and as it was published.
    _, v3, llama, _ = found["published"]
    assert 9 < llama["derived"] / v3["derived"] < 12
    assert f"takes 1/{llama['derived'] / v3['derived']:.1f} of" in page and "1/11.6 as published" in page
    assert [row["name"] for row in found["traffic"]] == [variant.name for variant in VARIANTS]
    for row in found["traffic"]:
        assert f"| {row['name']} | {row['nodes_per_token']:.2f} | {row['gpus_per_token']:.2f} |" in page
    for name in ("cost", "days", "traffic"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"({name}.png)" in page
    assert "traced 1 of 4" in said.getvalue() and " left" in said.getvalue()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("r.yaml", "--study"), "--study plans known models, and takes no recipe"),
        (("--study", "--num-gpus", "8"), "--num-gpus has no effect on --study; allowed with it: --out"),
        (("r.yaml", "--out", "folder"), "--out is the folder of --study"),
    ],
)
def test_what_the_study_does_not_look_at_is_refused(arguments, words):
    result = CliRunner().invoke(build_app(["plan"]), ["plan", *arguments])
    assert isinstance(result.exception, RecipeError) and words in str(result.exception)


def test_a_plan_of_the_same_says_the_same(tmp_path):
    """Full fine-tuning under FSDP of a dense model, two sequences of 4,000 tokens a pass."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "stage: sft\nmodel: {path: Qwen/Qwen2.5-1.5B}\ndata: {train: [none.jsonl], max_tokens: 4000}\n"
        "trainer: {per_device_train_batch_size: 2}\noutput: {dir: none}\n"
    )
    cluster = make_cluster("h100", 16)
    request = read_request(recipe, (), cluster)
    plan = make_plan(request, cluster, tokens=DISTILLATION.tokens, activations=Activations(0, 0, 0, 0, 0, 0))
    found = price_of("qwen2.5-1.5b", DISTILLATION, cluster)
    assert plan.bill.gpu_hours == pytest.approx(found.gpu_hours)
    assert plan.bill.cost == pytest.approx(found.cost)
    # So little is in a pass that GPUs wait for weights: 2,000 tokens on 256.
    many = make_cluster("h100", 256)
    request = replace(request, micro_batch=1, tokens=2000)
    waiting = make_plan(request, many, tokens=1e9, activations=Activations(0, 0, 0, 0, 0, 0)).traffic.seconds(many)
    assert study_costs.traffic_seconds("qwen2.5-1.5b", DISTILLATION, many) == pytest.approx(waiting)


def test_prices_follow_from_the_number_of_gpus():
    size = cost_of("deepseek-v3")
    # 684B parameters x 16 bytes in 0.8 of the memory take 161 GPUs.
    assert [price.num_gpus for price in size.prices[PRE_TRAINING.name]] == [512, 2048]
    first, last = size.prices[PRE_TRAINING.name]
    assert first.cost == pytest.approx(last.cost) and first.days == pytest.approx(4 * last.days)
    first, last = size.prices[RL.name]
    # All wait for the longest sample, whatever the number.
    assert last.waited > first.waited > 0.5 and last.days > first.days / 2


def test_sampling_by_hand():
    """Of V3 on 64 GPUs, half the usable memory of which its weights fill: 1,342 GB read for all rows."""
    cluster = make_cluster("h100", 64)
    together, longest = sampling_seconds("deepseek-v3", TokenFlops(0.0, 0.0, 0.0), cluster)
    weights, cache = 2 * 671.026e9, 2 * 61 * 576
    fitting = (0.8 * 81559 * 2**20 - weights / 64) // (cache * 6000)
    rows = min(8192 / 64, fitting)
    read = weights / (rows * 64) + cache * 3000
    assert together == pytest.approx(RL.tokens * read / (3350e9 * 0.6) / 64, rel=1e-3)
    alone = (weights + cache * R1_ZERO.longest / 2) / 64 / (3350e9 * 0.6)
    assert longest == pytest.approx(650 * R1_ZERO.longest * alone, rel=1e-3)
    assert R1_ZERO.longest == pytest.approx(39_700, rel=0.01) and R1_ZERO.rollouts * 16 == 10_400
    assert RL.work == Work(backward=2, recompute=2)


def test_traces_are_what_trained_routers_choose():
    limited, free, *_ = VARIANTS
    first, trained = record_trace(limited, steps=1), record_trace(limited, steps=8)
    assert trained.loss < 0.95 * first.loss
    assert trained.choices.shape == first.choices.shape == (3, 32 * 128, 8)
    assert (trained.choices != first.choices).float().mean() > 0.1
    nodes = torch.nn.functional.one_hot(trained.choices // 32, 8).amax(2).sum(-1)
    assert nodes.max() == OPEN_GROUPS
    assert measure_trace(record_trace(free, steps=1), 8, 8).nodes_per_token > OPEN_GROUPS


def test_bytes_across_nodes_at_v3s_size():
    # 58 layers and the MTP module's, 7,168 numbers, 1 byte there and 2 back, to 7 of 8 of the nodes.
    assert v3_megabytes(4) == pytest.approx(4 * 7 / 8 * 59 * 7168 * 3 / 1e6)
