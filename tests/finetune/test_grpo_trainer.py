"""GRPO against TRL's on the stock model, and what TRL's does not have: drafts, MTP and balance loss, routing replay."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from seeklet.finetune.grpo_trainer import SeekletGRPOTrainer
from tests.finetune.characters import EOS, VOCABULARY, build_tokenizer
from tests.modeling.nano import build_ours, build_pair
from tests.modeling.tensors import assert_same

SIZES = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PROMPTS = [[{"role": "user", "content": text}] for text in ("1+2", "3-4+5", "7", "8+8-1")]
NUM_PROMPT, NUM_COMPLETION, GROUP = 5, 6, 4


def reward_sevens(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """Return the number of sevens, up to three."""
    return [float(min(3, completion[0]["content"].count("7"))) for completion in completions]


def make_config(folder: Path, **fields: Any) -> GRPOConfig:
    return GRPOConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 16,
            "num_generations": GROUP,
            "max_completion_length": NUM_COMPLETION,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
    )


def make_ours(model: Any, folder: Path, config: dict[str, Any] | None = None, **options: Any) -> SeekletGRPOTrainer:
    data = Dataset.from_dict({"prompt": PROMPTS})
    rewards = options.pop("rewards", [reward_sevens])
    return SeekletGRPOTrainer(model, rewards, make_config(folder, **config or {}), build_tokenizer(), data, **options)


def batch(advantages: list[float]) -> dict[str, Any]:
    """Return a micro-batch of rows of different lengths, as TRL makes it."""
    generator = torch.Generator().manual_seed(3)
    rows = len(advantages)
    # Written out: means over tokens and over rows differ only where rows differ in length.
    prompt_lengths = torch.tensor([3, 1, 2, 4])[:rows, None]
    completion_lengths = torch.tensor([5, 2, 1, 4])[:rows, None]
    prompt_mask = (torch.arange(NUM_PROMPT) >= NUM_PROMPT - prompt_lengths).long()
    completion_mask = (torch.arange(NUM_COMPLETION) < completion_lengths).long()
    draw = [
        torch.randint(3, len(VOCABULARY), mask.shape, generator=generator) for mask in (prompt_mask, completion_mask)
    ]
    return {
        "prompt_ids": draw[0] * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": draw[1] * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": completion_mask.sum(),
        "old_per_token_logps": torch.randn(rows, NUM_COMPLETION, generator=generator) * 0.2 - 3.3,
    }


OBJECTIVES: list[dict[str, Any]] = [
    {"loss_type": "grpo"},
    {"loss_type": "bnpo"},
    {"loss_type": "dr_grpo", "scale_rewards": "none"},
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "sapo"},
    {"loss_type": "dapo", "temperature": 0.6},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda fields: "-".join(map(str, fields.values())))
@pytest.mark.parametrize("advantages", [[1.0, -0.5, 0.7, -1.2], [0.0, -1.5, 0.0, 1.5], [0.0, 0.0, 0.0, 0.0]])
def test_loss_and_gradient_are_trls_on_the_stock_model(
    tmp_path: Path, objective: dict[str, Any], advantages: list[float]
) -> None:
    stock, ours = build_pair(**SIZES, attn_implementation="eager")
    data = Dataset.from_dict({"prompt": PROMPTS})
    config = make_config(tmp_path, **objective)
    trainers: list[Any] = [
        make_ours(ours, tmp_path, objective),
        GRPOTrainer(stock, [reward_sevens], config, train_dataset=data, processing_class=build_tokenizer()),
    ]
    losses, gradients = [], []
    for trainer, model in zip(trainers, (ours, stock), strict=True):
        model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(model, batch(advantages))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(model.lm_head.weight.grad)
    torch.testing.assert_close(losses[0], losses[1], atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-6, rtol=1e-4)
    assert (gradients[0] != 0).any() == any(advantages)


def grow(model: Any, folder: Path, steps: int, **options: Any) -> list[float]:
    """Return the mean reward of each step of a training for sevens."""
    config = {"max_steps": steps, "learning_rate": 5e-3, "seed": 3, **options.pop("config", {})}
    trainer = make_ours(model, folder, config, **options)
    trainer.train()
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


@pytest.mark.parametrize("options", [{}, {"drafts": True}, {"replays_routing": True}], ids=str)
def test_reward_rises(tmp_path: Path, options: dict[str, Any]) -> None:
    rewards = grow(build_ours(**SIZES, num_nextn_predict_layers=1), tmp_path, 30, **options)
    assert rewards[0] < 1 and sum(rewards[-5:]) / 5 > 2


def test_multi_token_prediction_and_balance_loss_reach_the_gradient(tmp_path: Path) -> None:
    """Also of rows without advantage; the detached loss reaches the modules and nothing else."""
    found = {}
    for mode in ("off", "detached", "full"):
        model = build_ours(**SIZES, num_nextn_predict_layers=1, balance_loss_weight=0.0)
        trainer = make_ours(model, tmp_path, mtp_loss=mode)
        trainer.current_gradient_accumulation_steps = 1
        trainer._compute_loss(model, batch([0.0, 0.0])).backward()
        found[mode] = {
            name: parameter.grad is not None and bool(parameter.grad.any())
            for name, parameter in model.named_parameters()
        }
    module, main = "model.layers.3.eh_proj.weight", "model.layers.0.self_attn.o_proj.weight"
    assert [found[mode][module] for mode in found] == [False, True, True]
    assert [found[mode][main] for mode in found] == [False, False, True]
    model = build_ours(**SIZES, balance_loss_weight=1.0)
    trainer = make_ours(model, tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(model, batch([0.0, 0.0])).backward()
    assert model.model.layers[1].mlp.gate.weight.grad.any()


@pytest.mark.parametrize("speed", [0.0, 0.01])
def test_router_biases_stay_unless_they_are_to_move(tmp_path: Path, speed: float) -> None:
    model = build_ours(**SIZES, bias_update_speed=0.5)
    router = model.model.layers[1].mlp.gate
    before = router.e_score_correction_bias.clone()
    trainer = make_ours(model, tmp_path, {"max_steps": 1}, bias_update_speed=speed)
    trainer.train()
    moved = (router.e_score_correction_bias - before).abs()
    torch.testing.assert_close(moved.max(), torch.tensor(speed))
    logged = [entry for entry in trainer.state.log_history if "expert_load_max_over_mean/layer_1" in entry]
    assert logged, "the load is measured either way"


def test_a_whole_model_is_held_near_where_it_began(tmp_path: Path) -> None:
    """By a reference model, of seeklet's class and its weights."""
    build_ours(**SIZES).save_pretrained(tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trainer: Any = make_ours(model, tmp_path, {"beta": 0.1, "learning_rate": 1e-2, "max_steps": 3})
    assert type(trainer.ref_model) is type(model)
    before = {name: tensor.clone() for name, tensor in trainer.ref_model.state_dict().items()}
    trainer.train()
    divergences = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert len(divergences) == 3 and abs(divergences[0]) < 1e-6 < divergences[1] < divergences[2]
    assert_same(trainer.ref_model.state_dict(), before)


def make_replaying(folder: Path, **config: Any) -> tuple[Any, Any]:
    """Return a model, and a trainer whose routers are other ones as soon as the rollout is over."""
    model = build_ours(**SIZES, num_nextn_predict_layers=1)
    trainer: Any = make_ours(model, folder, config, replays_routing=True)
    calculate = trainer._calculate_rewards

    def then_scramble(*args: Any) -> Any:
        for layer in model.model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias.copy_(torch.randn(8) * 100)
        return calculate(*args)

    trainer._calculate_rewards = then_scramble
    return model, trainer


def test_a_batch_holds_the_experts_of_the_rollout(tmp_path: Path) -> None:
    model, trainer = make_replaying(tmp_path)
    biases = [layer.mlp.gate.e_score_correction_bias for layer in model.model.layers[1:]]
    before = [bias.clone() for bias in biases]
    made = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)])
    for bias, old in zip(biases, before, strict=True):
        bias.copy_(old)
    tokens, mask = (torch.cat((made[f"prompt_{kind}"], made[f"completion_{kind}"]), 1) for kind in ("ids", "mask"))
    with torch.no_grad():
        routed = model.model(tokens, attention_mask=mask, output_router_indices=True).router_indices
    expected = torch.stack(routed, 1).view(*tokens.shape, 2, 3)
    # The last token of a row was never fed in the rollout.
    fed = mask.bool() & (mask.cumsum(1) < mask.sum(1, keepdim=True))
    assert (made["expert_choice"][~mask.bool()] == -1).all()
    assert torch.equal(made["expert_choice"][fed].long().sort(-1).values, expected[fed].sort(-1).values)


@pytest.mark.parametrize("iterations", [1, 2])
def test_training_uses_the_experts_of_the_rollout(tmp_path: Path, iterations: int) -> None:
    """Old log-probabilities, which more than one iteration needs, are of the same experts."""
    model, trainer = make_replaying(
        tmp_path,
        num_iterations=iterations,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=iterations,
    )
    num_replayed: dict[bool, int] = {True: 0, False: 0}

    def watch(_: Any, __: Any, given: dict[str, Any], outputs: Any) -> None:
        if (choice := given.get("expert_choice")) is not None:
            recorded = (choice >= 0).all(-1)
            assert torch.equal(outputs[2][recorded], choice[recorded])
            num_replayed[torch.is_grad_enabled()] += int(recorded.sum())

    model.model.layers[1].mlp.gate.register_forward_hook(watch, with_kwargs=True)
    trainer.train()
    assert num_replayed[True] > 0 and (num_replayed[False] > 0) == (iterations == 2)
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


def test_completions_end_where_the_policy_ends_them(tmp_path: Path) -> None:
    """Ended rows leave the batch; each completion is what one row alone would say, drawn greedily."""
    model = build_ours(**SIZES, num_nextn_predict_layers=1)
    texts = []
    for drafts in (False, True):
        trainer: Any = make_ours(model, tmp_path, {"max_completion_length": 40, "temperature": 1e-6}, drafts=drafts)
        prompts = [
            trainer.processing_class.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in PROMPTS
        ]
        rows = [prompt for prompt in prompts for _ in range(GROUP)]
        texts.append(trainer._generate_single_turn(rows, None, {}, GROUP)[0])
        for prompt, row in zip(rows, texts[-1], strict=True):
            alone = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :]
            assert row == alone.tolist()
    end = VOCABULARY.index(EOS)
    assert all(end not in row[:-1] for row in texts[0])
    assert len({len(row) for row in texts[0]}) > 1, "no row ended before the others"


def test_a_short_trajectory_is_as_recorded(tmp_path: Path) -> None:
    """Rewards, entropies and losses of 4 steps in float64; a change of samples, advantages, losses or order shows."""
    torch.manual_seed(0)
    ours = build_ours(**SIZES, num_nextn_predict_layers=1).double()
    trainer = make_ours(ours, tmp_path, {"max_steps": 4, "learning_rate": 0.01, "loss_type": "dapo"})
    trainer.train()
    parts = ("reward", "entropy", "loss", "mtp_loss")
    entries = [[entry[part] for part in parts] for entry in trainer.state.log_history if "reward" in entry]
    recorded = (
        [0.1875, 3.016535778, 0.401551872, 4.013218789],
        [0.9375, 2.909574663, 0.333983660, 3.677896450],
        [1.0, 2.688751950, 0.355920762, 3.556750309],
        [2.9375, 2.156224899, 0.252420485, 2.521763154],
    )
    assert entries == [pytest.approx(each, rel=1e-6) for each in recorded]
