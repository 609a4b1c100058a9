"""Supervised training on written-out solutions, with load balance, MTP and validation until accurate enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from seeklet.modeling import SeekletForCausalLM

from .batches import IGNORE_INDEX, batches, encode_conversations
from .evaluate import Accuracy, complete, score
from .task import ChainSums, Problem


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training stage. The defaults reached 95, 89 and 89 % on the test problems of seeds 0, 1 and 2."""

    steps: int
    """Upper bound; training stops earlier once `stop_accuracy` is reached."""
    seed: int
    batch_size: int = 32
    """Problems per forward pass."""
    gradient_accumulation: int = 1
    """Forward passes per optimiser step."""
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    final_learning_rate_share: float = 0.1
    """The learning rate falls linearly to this share of its peak."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    max_gradient_norm: float = 1.0
    validate_every: int = 100
    stop_accuracy: float = 0.97


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step measured. Losses are means over the step's target tokens, in nats."""

    step: int
    lm_loss: float
    mtp_loss: float
    balance_loss: float
    gradient_norm: float
    learning_rate: float
    expert_load: list[list[int]]
    """Tokens each expert got, one list per MoE layer in order, the MTP module last."""


@dataclass(frozen=True)
class ValidationRecord:
    """Greedy accuracy on the validation problems after `step` steps."""

    step: int
    accuracy: Accuracy


@dataclass
class History:
    """Everything recorded while training."""

    steps: list[StepRecord] = field(default_factory=list)
    validations: list[ValidationRecord] = field(default_factory=list)
    stopped_early: bool = False


def learning_rate_share(step: int, settings: TrainSettings) -> float:
    """Return the share of the peak learning rate at `step`, counted from 0: linear warm-up, then linear decay.

    With 50 warm-up steps of 1,000 and a final share of 0.1: 0.02 at step 0, 1 at step 49, 0.55 half-way between step
    50 and 1,000, 0.1 at step 1,000.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 1 - (1 - settings.final_learning_rate_share) * done


def train(
    model: SeekletForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    task: ChainSums,
    settings: TrainSettings,
    on_step: Callable[[StepRecord], None],
    on_validation: Callable[[ValidationRecord], None],
) -> History:
    """Return the history of training `model` in place; the callbacks are told of each step and each validation."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        # A third of the time of the default on CPU, where half a million parameters sit in 150 small tensors.
        fused=True,
    )
    per_step = settings.batch_size * settings.gradient_accumulation
    history = History()
    for step, problems in enumerate(batches(task.train(settings.steps * per_step), per_step, settings.seed)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_share(step, settings)
        record = _train_step(model, tokenizer, optimizer, problems, step + 1, settings)
        history.steps.append(record)
        on_step(record)
        if record.step % settings.validate_every == 0 or record.step == settings.steps:
            accuracy = score(task, task.validation, complete(model, tokenizer, task.validation))
            history.validations.append(ValidationRecord(record.step, accuracy))
            on_validation(history.validations[-1])
            if accuracy.value >= settings.stop_accuracy:
                history.stopped_early = record.step < settings.steps
                break
    return history


def _train_step(
    model: SeekletForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    problems: Sequence[Problem],
    step: int,
    settings: TrainSettings,
) -> StepRecord:
    model.train()
    parts = [
        encode_conversations(tokenizer, problems[start : start + settings.batch_size])
        for start in range(0, len(problems), settings.batch_size)
    ]
    # Shared by all parts, so that accumulated gradients equal those of one large batch.
    num_targets = sum(int((part["labels"][:, 1:] != IGNORE_INDEX).sum()) for part in parts)
    lm_loss = mtp_loss = balance_loss = 0.0
    for part in parts:
        outputs = model(**part, num_items_in_batch=num_targets)
        outputs.loss.backward()
        lm_loss += outputs.lm_loss.item()
        mtp_loss += outputs.mtp_loss.item()
        if outputs.balance_loss is not None:
            balance_loss += outputs.balance_loss.item() / len(parts)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad()
    load = model.update_router_bias()
    return StepRecord(
        step=step,
        lm_loss=lm_loss,
        mtp_loss=mtp_loss,
        balance_loss=balance_loss,
        gradient_norm=norm.item(),
        learning_rate=optimizer.param_groups[0]["lr"],
        expert_load=[counts.tolist() for counts in load],
    )
