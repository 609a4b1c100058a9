"""What each process of the tests of expert parallelism runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from tests.finetune.world_ranks import enter, losses, make

EXPERTS, TOP_K = 8, 3


def join(folder: Path, world: int, rank: int, port: str, sharing: int, settings: dict[str, Any]) -> None:
    """Train a whole model, and an adapter where `settings` name checkpoints to go on from; leave what is compared."""
    enter(world, rank, port, per_node=1)
    found: dict[str, Any] = {}
    resumed: dict[bool, Path] = settings.pop("resumed", {})
    recipe: Path | None = settings.pop("recipe", None)
    for adapts in (False, True) if resumed else (False,):
        # With what is computed again in the backward pass, tokens travel again.
        found["adapter" if adapts else "whole"] = run(
            folder, world, adapts, None, expert_parallel=sharing, gradient_checkpointing=adapts, **settings
        )
    for adapts, path in resumed.items():
        name = f"{'adapter' if adapts else 'whole'} resumed"
        found[name] = run(folder, world, adapts, path, expert_parallel=sharing, **settings)
    check_exchange(rank, world)
    if recipe is not None:
        from seeklet.finetune.recipe import load_recipe
        from seeklet.finetune.sft import train

        train(load_recipe(recipe, [f"trainer.expert_parallel={sharing}"]))
    torch.save(found, folder / f"rank{rank}.pt")


def run(folder: Path, world: int, adapts: bool, resumed: Path | None, **settings: Any) -> dict[str, Any]:
    """Return losses, log and the first step's gradients of a training, whose result and checkpoints are saved."""
    from tests.finetune.test_sft_trainer import KeepGradients

    keep = KeepGradients()
    folder = folder / f"{'adapter' if adapts else 'whole'}{'-resumed' if resumed else ''}"
    kwargs = {"use_reentrant": False} if settings.get("gradient_checkpointing") else None
    trainer = make(folder, world, adapts, callbacks=[keep], gradient_checkpointing_kwargs=kwargs, **settings)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trainer.save_trained(folder / "model")
    return {"losses": losses(trainer), "log": trainer.state.log_history, "gradients": keep.kept}


def check_exchange(rank: int, world: int) -> None:
    """Assert that shared experts compute as whole ones do, forward and backward, also where a process gets no token."""
    from seeklet.modeling import kernelize
    from seeklet.modeling.expert_exchange import ExpertExchange
    from seeklet.modeling.expert_slices import ExpertSlice
    from tests.modeling.nano import relative_error

    everyone: Any = dist.group.WORLD
    exchange, own = ExpertExchange(everyone, EXPERTS, processes_per_node=1), ExpertSlice(rank, world)
    # In the second case the last process has none of the experts that are chosen.
    for seed, chosen, fused in ((0, EXPERTS, False), (1, max(TOP_K, EXPERTS // world), False), (2, EXPERTS, True)):
        generator = torch.Generator().manual_seed(seed)
        whole, part = _experts(generator), _experts(generator)
        for name, weight in part.named_parameters():
            weight.data = own.of(whole.get_parameter(name).data).clone()
        if fused:
            kernelize(part, "training", quiet=True)
        # Each process has another number of tokens; an expert's gradient is of those of all.
        batches = [_draw(5 + 2 * index, chosen, generator) for index in range(world)]
        expected = [_pass(whole, *batch) for batch in batches][rank]
        # As gradient checkpointing does it.
        actual = _pass(partial(checkpoint, exchange, part, use_reentrant=False), *batches[rank])
        expected += [own.of(_gradient(weight)) for weight in whole.parameters()]
        actual += [_gradient(weight) for weight in part.parameters()]
        for index, (here, there) in enumerate(zip(actual, expected, strict=True)):
            assert relative_error(here, there) < 1e-12, (seed, index)


def _experts(generator: torch.Generator) -> Any:
    from seeklet.modeling import SeekletConfig
    from seeklet.modeling.moe import SeekletExperts
    from tests.modeling.nano import SIZES

    experts = SeekletExperts(SeekletConfig(**SIZES)).double()
    for weight in experts.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return experts


def _pass(
    compute: Callable[..., Any], x: torch.Tensor, choice: torch.Tensor, weights: torch.Tensor, grad: torch.Tensor
) -> list[torch.Tensor]:
    """Return the output, and the gradients of tokens and weights."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    output = compute(x, choice, weights)
    output.backward(grad)
    return [output.detach(), _gradient(x), _gradient(weights)]


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _draw(tokens: int, experts: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return tokens (T, H), a choice (T, K) among the first `experts`, weights (T, K) and a gradient (T, H)."""
    from tests.modeling.nano import SIZES

    x, grad = (torch.randn(tokens, SIZES["hidden_size"], generator=generator, dtype=torch.float64) for _ in range(2))
    choice = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :TOP_K]
    return x, choice, torch.rand(tokens, TOP_K, generator=generator, dtype=torch.float64), grad
