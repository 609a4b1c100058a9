"""`seeklet plan` in a process of its own: a plan as JSON and PNG, and one line for each mistake."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seeklet.finetune.cli import build_app
from seeklet.finetune.demo.nano import teacher_config
from seeklet.finetune.errors import RecipeError
from seeklet.finetune.plan import calibrate, plan
from seeklet.finetune.plan.activations import Activations

RECIPES = Path(__file__).parents[3] / "recipes"
V3 = str(RECIPES / "sft_deepseek-v3_chat_8xh200.yaml")
V3_TWO = str(RECIPES / "sft_deepseek-v3_chat_2x8xh200.yaml")
PIPELINE = str(RECIPES / "pipeline_r1_qwen2.5-7b_math_8xh200.yaml")
ROLLOUT = str(RECIPES / "rollout_qwen2.5-7b_maths_8xh200.yaml")
QLORA = str(RECIPES / "sft_moonlight-16b-a3b_knowledge_1x24gb.yaml")
DISTILL = str(RECIPES / "distill_qwen2.5-1.5b_on-policy_1gpu.yaml")


def run(*arguments: str):
    return CliRunner().invoke(build_app(["plan"]), ["plan", *arguments], catch_exceptions=True)


@pytest.fixture
def recipe(tmp_path):
    teacher_config().save_pretrained(tmp_path / "nano")
    text = f"""stage: sft
model: {{path: "{tmp_path / "nano"}", dtype: float32}}
data: {{train: [not-there.jsonl], max_tokens: 128}}
trainer: {{max_steps: 10, per_device_train_batch_size: 2, bf16: false}}
output: {{dir: "{tmp_path / "out"}"}}
"""
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return file


def test_plan_as_json_and_png(recipe, tmp_path):
    plot = tmp_path / "plots" / "memory.png"
    result = run(str(recipe), "--gpu", "h100", "--price", "2", "--json", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout[result.stdout.index("{") :])
    assert found["fits"] and found["run"]["tokens"] == 10 * 2 * 128
    assert found["run"]["cost"] == pytest.approx(2 * found["run"]["gpu_hours"])
    memory = found["memory_per_gpu"]
    weights = memory["weights"]
    assert memory["gradients"] < weights and memory["optimizer"] == 2 * memory["gradients"]
    assert memory["total"] == sum(size for part, size in memory.items() if part not in ("total", "available"))
    assert found["calibration"] is None and found["assumptions"][0].startswith("assumed: 40%")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_calibrated_plan(recipe, monkeypatch):
    """A short run here, in place of the 40 % that are assumed: the hours follow."""
    monkeypatch.setattr(calibrate, "_CPU_SIZES", calibrate._CPU_SIZES | {"vocab_size": 512, "hidden_size": 128})
    monkeypatch.setattr(plan, "fit_activations", lambda *_: Activations(0.0, 0.0, 0.0, 0.0, 1, 2))
    found = json.loads(run(str(recipe), "--gpu", "h100", "--calibrate", "--json").stdout)
    measured = found["calibration"]
    assert found["efficiency"] == pytest.approx(min(1, measured["step_flops"] / measured["peak_flops"])) != 0.4
    # All weights, checkpointed: a pass forward, one more, and twice that back.
    seconds = 4 * found["flops_forward_per_token"] / (989.4e12 * found["efficiency"])
    assert found["gpu_seconds_per_token"]["computing"] == pytest.approx(seconds)
    assert found["assumptions"][0].startswith(f"measured: {found['efficiency']:.0%}, on this CPU")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((V3, "--gpu", "h300"), "--gpu is h300; allowed: a100"),
        ((V3, "--gpu", "h100,h200"), "one kind"),
        ((V3, "--num-gpus", "16"), "model.device_map: auto reaches the GPUs of one node, and here are 2"),
        ((V3, "--num-gpus", "8", "--layout", "fsdp"), "which --layout fsdp excludes"),
        ((V3, "--num-gpus", "8", "--layout", "zero"), "allowed: single, layers, fsdp, ddp"),
        (
            (V3_TWO, "--num-gpus", "24", "--expert-parallel", "24"),
            "24 for 256 experts on 24 GPUs; allowed: divisors",
        ),
        ((V3_TWO, "--num-gpus", "16", "model.path=nobody"), "nobody"),
        ((V3_TWO, "--num-gpus", "16", "trainer.optim=adafactor"), "trainer.optim is adafactor"),
        ((V3, "--efficiency", "1.5"), "--efficiency is 1.5; allowed"),
        ((V3, "--calibrate", "--efficiency", "0.5"), "leave one of the two out"),
        ((PIPELINE,), "stages: is a pipeline of cold_start, "),
        ((ROLLOUT,), "stage: rollout trains nothing; allowed in a plan: sft, distill-topk, grpo, distill"),
        (
            (QLORA, "--num-gpus", "8", "--layout", "fsdp"),
            "FSDP does not share out quantised weights; plan with",
        ),
        ((QLORA, "model.fp8=keep"), "model.quantization: is nf4, and model.fp8 is keep"),
        ((QLORA, "adapter=null"), "nf4 freezes the weights, and without an adapter"),
        ((DISTILL, "teacher.path=/nobody"), "teacher.path: /nobody"),
        ((), "a recipe is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_line(arguments, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run(*arguments)
    assert isinstance(result.exception, RecipeError)
    assert words in str(result.exception) and "\n" not in str(result.exception)


def test_a_folder_without_config_says_so(recipe, tmp_path):
    (tmp_path / "nano" / "config.json").unlink()
    result = run(str(recipe))
    assert "has no config.json; the plan needs that file, not the weights" in str(result.exception)
