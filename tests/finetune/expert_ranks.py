"""What each process of the tests of expert parallelism runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
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
    check_refusal(sharing)
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
    from seeklet.modeling.kernelize import InTree
    from tests.modeling.nano import relative_error

    everyone: Any = dist.group.WORLD
    exchange, own = ExpertExchange(everyone, EXPERTS, processes_per_node=1), ExpertSlice(rank, world)
    check_spread(exchange, world)
    for kind, tolerance in (("plain", 1e-12), ("idle", 1e-12), ("kernels", 1e-12), ("autocast", 2e-2), ("fp8", 1e-5)):
        generator = torch.Generator().manual_seed(0)
        whole, part = _experts(kind, generator), _experts(kind, generator)
        for name, tensor in part.state_dict(keep_vars=True).items():
            tensor.data = own.of(whole.state_dict()[name]).clone()
        if kind == "kernels":
            # In place of the module's own forward, on its part.
            kernel: Any = {"SeekletExperts": {"cpu": InTree("SeekletExperts")}}
            (row,) = kernelize(part, "training", "cpu", mapping=kernel, quiet=True)
            assert row.kernel is not None
        # Where it is to be idle, the last process has none of the experts that are chosen.
        chosen, dtype = max(TOP_K, EXPERTS // world) if kind == "idle" else EXPERTS, whole.down_proj.dtype
        dtype = torch.float32 if dtype == torch.float8_e4m3fn else dtype
        # Each process has another number of tokens; an expert's gradient is of those of all.
        batches = [_draw(5 + 2 * index, chosen, generator, dtype) for index in range(world)]
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            expected = [_pass(whole, *batch) for batch in batches][rank]
            # As gradient checkpointing does it.
            actual = _pass(partial(checkpoint, exchange, part, use_reentrant=False), *batches[rank])
        expected += [own.of(_gradient(weight)) for weight in whole.parameters() if weight.requires_grad]
        actual += [_gradient(weight) for weight in part.parameters() if weight.requires_grad]
        for index, (here, there) in enumerate(zip(actual, expected, strict=True)):
            assert here.dtype == there.dtype and relative_error(here, there) < tolerance, (kind, index)


def check_refusal(sharing: int) -> None:
    """Assert that an adapter of routed experts alone, of which DDP would have nothing to do, is refused."""
    from seeklet.finetune.errors import RecipeError
    from seeklet.finetune.expert_parallel import SharedExperts
    from tests.finetune.lora.adapters import attached, build

    with pytest.raises(RecipeError, match="reaches routed experts alone"):
        SharedExperts(attached(build(), "routed_experts"), sharing)


def check_spread(exchange: Any, world: int) -> None:
    """Assert over how many processes tokens are said to go that choose experts of one, of two and of one."""
    per_process = EXPERTS // world
    choice = torch.tensor([[0, 1, 0], [0, per_process, per_process + 1], [EXPERTS - 1, EXPERTS - 2, EXPERTS - 1]])
    exchange.count(choice)
    exchange.count(choice, torch.tensor([True, False, True]))
    assert exchange.take_spread() == (6 / 5, 6 / 5) and exchange.take_spread() is None


def _experts(kind: str, generator: torch.Generator) -> Any:
    from seeklet.modeling import SeekletConfig
    from seeklet.modeling.fp8 import Fp8Experts
    from seeklet.modeling.moe import SeekletExperts
    from tests.modeling.nano import SIZES

    if kind == "fp8":
        experts: Any = Fp8Experts(EXPERTS, SIZES["hidden_size"], SIZES["moe_intermediate_size"])
    else:
        experts = SeekletExperts(SeekletConfig(**SIZES)).to(torch.float32 if kind == "autocast" else torch.float64)
    for tensor in experts.state_dict(keep_vars=True).values():
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.data = drawn.to(tensor.dtype) if kind != "autocast" else drawn.mul_(0.2).to(tensor.dtype)
    return experts


def _pass(
    compute: Callable[..., Any], x: torch.Tensor, choice: torch.Tensor, weights: torch.Tensor, grad: torch.Tensor
) -> list[torch.Tensor]:
    """Return the output, and the gradients of tokens and weights."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    output = compute(x, choice, weights)
    output.backward(grad.to(output.dtype))
    return [output.detach(), _gradient(x), _gradient(weights)]


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _draw(tokens: int, experts: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return tokens (T, H), a choice (T, K) among the first `experts`, weights (T, K) and a gradient (T, H)."""
    from tests.modeling.nano import SIZES

    x, grad = (torch.randn(tokens, SIZES["hidden_size"], generator=generator, dtype=dtype) for _ in range(2))
    choice = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :TOP_K]
    return x, choice, torch.rand(tokens, TOP_K, generator=generator, dtype=dtype), grad
