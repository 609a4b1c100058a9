"""Reinforcement learning and on-policy distillation: what stands beside the model, by hand."""

from pathlib import Path
from typing import Any

import pytest

from seeklet.finetune.plan import packages
from seeklet.finetune.plan.activations import Activations
from seeklet.finetune.plan.cluster import make_cluster
from seeklet.finetune.plan.companions import find_companions
from seeklet.finetune.plan.counts import count_flops
from seeklet.finetune.plan.memory import plan_memory
from seeklet.finetune.plan.plan import make_plan
from seeklet.finetune.plan.request import read_request, samples_per_process

RECIPES = Path(__file__).parents[3] / "recipes"
GRPO = RECIPES / "grpo_qwen2.5-7b_maths-r1_8xh200.yaml"
DISTILL = RECIPES / "distill_qwen2.5-1.5b_on-policy_1gpu.yaml"
NOTHING = Activations(0.0, 0.0, 0.0, 0.0, 28, 0)
QWEN_7B, QWEN_1_5B = 7_615_616_512, 1_543_714_304
ADAPTER = "adapter={targets: [attention], rank: 8}"


def request_of(file: Path, num_gpus: int, *overrides: str) -> tuple[Any, Any]:
    cluster = make_cluster("h200", num_gpus)
    return read_request(file, overrides, cluster), cluster


def test_grpo_keeps_a_reference_and_samples_through_vllm():
    request, cluster = request_of(GRPO, 8)
    memory = plan_memory(request, cluster, request.build(), NOTHING)
    assert request.tokens == 1024 + 8192 and samples_per_process(request) == 64
    assert memory.companion == memory.weights == pytest.approx(2 * QWEN_7B / 8, rel=1e-6)
    assert memory.sampler == int(0.3 * cluster.gpu.memory_bytes) and memory.kv_cache == 0
    plan = make_plan(request, cluster, activations=NOTHING)
    forward = count_flops(request.build_bare(), 9216).forward
    # Forward, again for checkpointing, twice that back, and once through the reference.
    assert plan.compute_s == pytest.approx(5 * forward / (989.4e12 * 0.4))
    assert plan.decode_s > 0


def test_without_vllm_its_cache_is_there_while_sampling():
    request, cluster = request_of(GRPO, 8, "trainer.use_vllm=false", "trainer.per_device_train_batch_size=1")
    memory = plan_memory(request, cluster, request.build(), NOTHING)
    # 8 samples of 28 layers with keys and values of 4 heads of 128.
    assert memory.kv_cache == 8 * 9216 * 28 * 2 * 4 * 128 * 2 and memory.sampler == 0
    assert memory.parts()["activations"] == 0


@pytest.mark.parametrize(("override", "passes"), [("trainer.beta=0", 0), (ADAPTER, 1)])
def test_no_reference_is_loaded(override, passes):
    request, _ = request_of(GRPO, 8, override)
    found = find_companions(request)
    assert found.weights == 0
    assert found.flops_per_token == pytest.approx(passes * count_flops(request.build_bare(), 9216).forward)


def test_packages_that_are_not_here_are_named(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    request, _ = request_of(GRPO, 8, "trainer.optim=adamw_torch_8bit", "model.attn_implementation=flash_attention_2")
    lines = packages.missing_packages(request.recipe)
    assert [line.split(" needs ")[1].split(",")[0] for line in lines] == ["vllm", "torchao", "flash_attn"]
    assert lines[0].startswith("trainer.use_vllm: true needs vllm") and lines[0].endswith("pip install 'trl[vllm]'")


def test_distillation_keeps_its_teacher():
    request, cluster = request_of(DISTILL, 1, "teacher.path=Qwen/Qwen2.5-7B-Instruct")
    memory = plan_memory(request, cluster, request.build(), NOTHING)
    assert memory.companion == pytest.approx(2 * QWEN_7B, rel=1e-6)
    assert memory.weights == pytest.approx(4 * QWEN_1_5B, rel=1e-6)
    assert samples_per_process(request) == 8 and memory.kv_cache == 8 * 5120 * 28 * 2 * 2 * 128 * 2
    forward = count_flops(request.build_bare(), 5120).forward
    teacher = find_companions(request).flops_per_token
    assert teacher > 4 * forward
    plan = make_plan(request, cluster, activations=NOTHING)
    assert plan.compute_s == pytest.approx((4 * forward + teacher) / (989.4e12 * 0.4))
