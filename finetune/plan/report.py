"""A plan as tables for people and as JSON for programs."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from .fit import Change
from .memory import CONTEXT_BYTES, FRAGMENTATION_SHARE
from .plan import Plan
from .request import LAYOUTS, missing_engines

PART_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "gathered": "layers gathered (FSDP)",
    "activations": "activations",
    "logits": "logits",
    "kv_cache": "KV cache",
    "fragmentation": "fragmentation and CUDA",
}


def show_plan(plan: Plan, largest: tuple[int, int], changes: list[Change], console: Console) -> None:
    """Print a plan, the largest (micro-batch, sequence) that fit, and the changes that would help."""
    request, cluster, gpu = plan.request, plan.cluster, plan.cluster.gpu
    nodes = f" on {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    sharing = request.expert_parallel
    shared = f", routed experts shared by {sharing}" if sharing > 1 else ""
    layout = f"{LAYOUTS[request.layout]}{shared}"
    console.print(f"{request.recipe.model.path} on {cluster.num_gpus} x {gpu.name}{nodes}: {layout}")
    counts = plan.counts
    share = plan.trained / (counts.total + counts.mtp)
    modules = f", {_number(counts.mtp)} more in multi-token prediction" if counts.mtp else ""
    console.print(
        f"parameters: {_number(counts.total)}, of which a token passes {_number(counts.active)}{modules}; trained: "
        f"{_number(plan.trained)} ({share:.2%})"
    )
    console.print(_memory_table(plan))
    console.print(_verdict(plan, largest), style="bold")
    console.print(_work_table(plan))
    for line in (*assumptions(plan), *missing_engines(request.recipe)):
        console.print(f"- {line}", soft_wrap=True)
    if changes:
        console.print("What would make it fit:" if not plan.fits else "What would cost less:")
        for change in changes:
            size = change.memory.total / 1e9
            console.print(f"- {change.what}: {size:.1f} GB a GPU, {change.cost_factor:.2f} x the cost", soft_wrap=True)
    elif not plan.fits:
        console.print("No single change makes it fit: combine them, take more GPUs, or another model.", soft_wrap=True)


def assumptions(plan: Plan) -> list[str]:
    """Return what a plan assumes rather than counts, a line each."""
    gpu = plan.cluster.gpu
    price = "no price is known for it; pass --price" if gpu.price_per_hour is None else gpu.price_source
    return [
        f"assumed: {plan.efficiency:.0%} of {gpu.tflops_bf16:g} TFLOP/s in bf16 (--efficiency); measured nowhere "
        "yet for seeklet on a GPU, and at large scale by DeepSeek (39 %) and Meta (38-43 %)",
        f"assumed: fragmentation of {FRAGMENTATION_SHARE:.0%} of what comes and goes, {CONTEXT_BYTES / 2**30:g} GiB "
        f"for CUDA; energy at {gpu.tdp_w:g} W a GPU, without host and cooling",
        f"price: {'' if gpu.price_per_hour is None else f'{gpu.price_per_hour:g} USD an hour, '}{price}",
        "counted: parameters on the meta device; activations by traced steps of shallow versions of the model",
    ]


def as_json(plan: Plan, largest: tuple[int, int], changes: list[Change]) -> dict[str, Any]:
    """Return the same as plain values; bytes, seconds, USD."""
    gpu, request = plan.cluster.gpu, plan.request
    return {
        "model": request.recipe.model.path,
        "stage": request.recipe.stage,
        "cluster": {"gpu": asdict(gpu), "num_gpus": plan.cluster.num_gpus, "nodes": plan.cluster.nodes},
        "layout": request.layout,
        "micro_batch": request.micro_batch,
        "tokens_per_sequence": request.tokens,
        "parameters": {**asdict(plan.counts), "trained": plan.trained},
        "memory_per_gpu": {**plan.memory.parts(), "total": plan.memory.total, "available": gpu.memory_bytes},
        "fits": plan.fits,
        "largest_micro_batch": largest[0],
        "largest_sequence": largest[1],
        "flops_forward_per_token": plan.flops.forward,
        "efficiency": plan.efficiency,
        "tokens_per_s": plan.tokens_per_s,
        "gpu_seconds_per_token": {
            "computing": plan.compute_s,
            "waiting": plan.waiting_s,
            "sampling": plan.decode_s,
        },
        "traffic_bytes_per_token": asdict(plan.traffic),
        "run": {**asdict(plan.bill), "tokens_known": plan.tokens is not None},
        "changes": [
            {"what": change.what, "memory_per_gpu": change.memory.total, "cost_factor": change.cost_factor}
            for change in changes
        ],
        "assumptions": assumptions(plan),
        "missing": missing_engines(request.recipe),
    }


def _memory_table(plan: Plan) -> Table:
    table = Table("memory of the fullest GPU", "GB", "share", title=None)
    for column in table.columns[1:]:
        column.justify = "right"
    available = plan.cluster.gpu.memory_bytes
    for part, size in plan.memory.parts().items():
        if size:
            table.add_row(PART_NAMES[part], f"{size / 1e9:.2f}", f"{size / available:.1%}")
    table.add_section()
    table.add_row("together", f"{plan.memory.total / 1e9:.2f}", f"{plan.memory.total / available:.1%}")
    table.add_row("there is", f"{available / 1e9:.2f}", "")
    return table


def _work_table(plan: Plan) -> Table:
    bill, per_token = plan.bill, plan.seconds_per_token
    what = "the run" if plan.tokens is not None else "each billion tokens (the recipe names no max_steps; --tokens)"
    table = Table(what, "", title=None)
    table.columns[1].justify = "right"
    table.add_row("tokens", _number(bill.tokens))
    table.add_row("tokens per second", f"{plan.tokens_per_s:,.0f}")
    table.add_row("hours", f"{bill.hours:,.2f}")
    table.add_row("GPU hours", f"{bill.gpu_hours:,.1f}")
    table.add_row("energy", f"{bill.energy_kwh:,.1f} kWh")
    table.add_row("cost", "no price known" if bill.cost is None else f"{bill.cost:,.2f} USD")
    for name, seconds in (("computing", plan.compute_s), ("waiting", plan.waiting_s), ("sampling", plan.decode_s)):
        if seconds:
            table.add_row(f"of it {name}", f"{seconds / per_token:.0%}")
    traffic = plan.traffic
    if traffic.within_node or traffic.across_nodes:
        table.add_row("sent per token within the node", f"{traffic.within_node / 1e3:,.1f} kB")
        table.add_row("sent per token to other nodes", f"{traffic.across_nodes / 1e3:,.1f} kB")
    return table


def _verdict(plan: Plan, largest: tuple[int, int]) -> str:
    request = plan.request
    now = f"{request.micro_batch} x {request.tokens:,} tokens at a time"
    if not plan.fits:
        over = (plan.memory.total - plan.cluster.gpu.memory_bytes) / 1e9
        return f"Does not fit: {now} need {over:.1f} GB more than a GPU has. Fits at most: {_most(request, largest)}."
    return f"Fits: {now}. At most: {_most(request, largest)}."


def _most(request: Any, largest: tuple[int, int]) -> str:
    if not largest[0] and not largest[1]:
        return "nothing"
    return f"micro-batches of {largest[0]:,} at {request.tokens:,} tokens, or one sequence of {largest[1]:,}"


def _number(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:g}"
