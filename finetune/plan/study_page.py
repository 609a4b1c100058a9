"""The study's page: every figure in tables, what is assumed, and what follows."""

from collections.abc import Sequence

from .cluster import known_gpus, make_cluster
from .communication import expected_spread, expert_parallel_traffic
from .model_config import published_config
from .speed import BANDWIDTH_EFFICIENCY, EFFICIENCY
from .study_costs import (
    DISTILLATION,
    EXPERT_PARALLEL,
    GPU,
    JOBS,
    NUM_GPUS,
    PRE_TRAINING,
    R1_ZERO,
    RL,
    TOKENS_PER_PASS,
    USABLE,
    Job,
    Published,
    Size,
)
from .study_plots import in_short
from .traffic_simulation import (
    GROUPS,
    NUM_EXPERTS,
    OPEN_GROUPS,
    SIMULATED_GPUS,
    SIMULATED_NODES,
    STEPS,
    TOP_K,
    TRACED_ROWS,
    VARIANTS,
    Measured,
)


def write_markdown(
    sizes: Sequence[Size], published: Sequence[Published], traffic: Sequence[tuple[str, Measured]]
) -> str:
    """Return the page."""
    return "\n\n".join(
        [
            "# What if: the cost of training from 1.5B to 671B, and the traffic of experts",
            "Written by `seeklet plan --study`. Nothing here was run on a GPU: costs are counted from the models' "
            "published configs, traffic is simulated from routing of small models that were trained on a CPU.",
            "## What it says",
            _conclusions(sizes, published, traffic),
            "## What is assumed",
            _assumptions(),
            "## Beside what was published",
            _published_table(published),
            *(_job_section(job, sizes) for job in JOBS),
            "## Side by side",
            "Each job where it costs least, and how long it takes on any number of GPUs:",
            "![cost](cost.png)",
            "![days](days.png)",
            "## Traffic of expert parallelism",
            _traffic_section(traffic),
            "![traffic](traffic.png)\n",
        ]
    )


def v3_megabytes(nodes_per_token: float) -> float:
    """Return the MB that a token of V3 sends to other nodes in a forward pass, and gets back, in all its layers."""
    config, cluster = published_config("deepseek-v3"), make_cluster("h800", SIMULATED_NODES * SIMULATED_GPUS)
    even = expert_parallel_traffic(config, cluster, cluster.num_gpus, dispatch_bytes=1)
    return even.across_nodes / expected_spread(GROUPS, NUM_EXPERTS, TOP_K, OPEN_GROUPS) * nodes_per_token / 1e6


def _conclusions(sizes: Sequence[Size], published: Sequence[Published], traffic: Sequence[tuple[str, Measured]]) -> str:
    by_name = {size.name: size for size in sizes}
    v3, dense, small = by_name["deepseek-v3"], by_name["llama-3.3-70b"], by_name["qwen2.5-7b"]
    share = _least(v3, PRE_TRAINING) / _least(dense, PRE_TRAINING)
    last = NUM_GPUS[-1]
    idle = small.prices[RL.name][-1].waited
    again = _least(small, RL) / _least(small, DISTILLATION)
    _, v3_hours, llama_hours, _ = published
    limited, free, _, neither = (measured for _, measured in traffic)
    return _list(
        f"DeepSeek-V3's pre-training takes 1/{llama_hours.derived / v3_hours.derived:.1f} of the GPU hours of "
        f"Llama-3.1-405B's, both derived from their configs with one efficiency; 1/"
        f'{llama_hours.published / v3_hours.published:.1f} as published. "About one tenth" follows from '
        "what a token passes: 37B of 671B parameters, against all of 405B.",
        f"On the same tokens V3 costs {share:.2f} x what a dense 70B does, with "
        f"{v3.total / dense.total:.1f} x its parameters.",
        f"Distilling R1's traces into a 7B model costs 1/{again:.0f} of R1-style RL on it, the making of the traces "
        "left out.",
        f"RL stops getting faster long before pre-training does: every rollout waits for its longest sample. On "
        f"{last:,} GPUs a 7B model's would wait {idle:.0%} of the time.",
        f"A limit of {OPEN_GROUPS} nodes lowers what crosses the network to {limited.nodes_per_token:.2f} nodes a "
        f"token from {free.nodes_per_token:.2f}; balance hardly changes that. Balance lowers the load of the fullest "
        f"GPU, which all others wait for, to {free.fullest_gpu:.1f} x the mean from {neither.fullest_gpu:.1f} x, or "
        f"to {limited.fullest_gpu:.1f} x under the limit. Each does what the other cannot.",
    )


def _assumptions() -> str:
    gpu = known_gpus()[GPU]
    return _list(
        f"{gpu.name} at {gpu.price_per_hour} USD an hour ({gpu.price_source}), {gpu.network_gb_per_s} GB/s to other "
        "nodes for each GPU, 8 GPUs a node.",
        f"{EFFICIENCY:.0%} of the bf16 peak while computing, for every model and GPU, and {BANDWIDTH_EFFICIENCY:.0%} "
        "of the memory's bandwidth while sampling, as in any plan (`finetune/plan/speed.py`).",
        f"All weights are trained, in bf16 with AdamW in fp32: {PRE_TRAINING.bytes_per_parameter} bytes a parameter, "
        f"{RL.bytes_per_parameter} with RL's reference model, in {USABLE:.0%} of the GPUs' memory.",
        f"Shared out by FSDP, {TOKENS_PER_PASS:,} tokens a pass or what there is of the batch; experts over "
        f"{EXPERT_PARALLEL} GPUs at most. Traffic is hidden behind computing as far as it takes no longer.",
        f"Pre-training: {PRE_TRAINING.tokens / 1e12:g}T tokens in sequences of {PRE_TRAINING.length:,}, "
        f"{PRE_TRAINING.batch / 2**20:g}Mi tokens a step.",
        f"R1-style RL, as R1-Zero: 10,400 steps of 32 questions x 16 samples, {RL.length:,} tokens each on average "
        f"(assumed), {RL.tokens / 1e9:.0f}B in all; a reference model; {R1_ZERO.rollouts} rollouts of "
        f"{R1_ZERO.samples:,} samples, one of which reaches the limit of 32,768, later 65,536 tokens, beside others "
        "that need every expert. Scoring, communication between the GPUs that sample, and loading weights into them "
        "are left out.",
        f"Distillation, as R1's: 800,000 traces of {DISTILLATION.length:,} tokens on average (assumed), 2 epochs, "
        f"{DISTILLATION.tokens / 1e9:g}B tokens, 128 traces a step.",
        "Prices move: hours last longer than dollars.",
    )


def _published_table(published: Sequence[Published]) -> str:
    rows = [
        (
            each.what,
            f"{each.derived:,.0f}",
            f"{each.published:,.0f}",
            f"{each.derived / each.published:.2f}",
            each.source,
        )
        for each in published
    ]
    _, v3, llama, zero = published
    derived, reported = v3.derived / llama.derived, v3.published / llama.published
    rows.append(
        ("V3 over Llama-3.1-405B", f"{derived:.3f}", f"{reported:.3f}", f"{derived / reported:.2f}", "the above")
    )
    table = _table(("what", "derived, GPU hours", "published, GPU hours", "derived / published", "source"), rows)
    return (
        f"{table}\n\nRL is underestimated, at {zero.derived / zero.published:.2f} of what R1-Zero took: here no GPU "
        "waits for rewards, for weights or for other GPUs while sampling."
    )


def _job_section(job: Job, sizes: Sequence[Size]) -> str:
    rows = []
    for size in sizes:
        prices = {price.num_gpus: price for price in size.prices[job.name]}
        cells = [
            f"{_days(prices[number].days)}, {in_short(prices[number].cost)}" if number in prices else "–"
            for number in NUM_GPUS
        ]
        rows.append((size.name, f"{size.total / 1e9:.1f}B", f"{size.active / 1e9:.1f}B", *cells))
    heads = ("model", "total", "active", *(f"{number:,} GPUs" for number in NUM_GPUS))
    legend = "Time (d: days, h: hours) and cost in USD; – where it does not fit."
    return f"## {job.name[0].upper()}{job.name[1:]}\n\n{legend}\n\n{_table(heads, rows)}"


def _traffic_section(traffic: Sequence[tuple[str, Measured]]) -> str:
    network = known_gpus()["h800"].network_gb_per_s
    rows = []
    for name, measured in traffic:
        sent = v3_megabytes(measured.nodes_per_token)
        rows.append(
            (
                name,
                f"{measured.nodes_per_token:.2f}",
                f"{measured.gpus_per_token:.2f}",
                f"{measured.fullest_gpu:.2f}",
                f"{measured.fullest_node:.2f}",
                f"{sent:.2f}",
                f"{sent / network * 1e3 * measured.fullest_node:.0f}",
            )
        )
    for name, open_groups in (("by formula, limit", OPEN_GROUPS), ("by formula, no limit", GROUPS)):
        nodes = expected_spread(GROUPS, NUM_EXPERTS, TOP_K, open_groups)
        sent = v3_megabytes(nodes)
        rows.append((name, f"{nodes:.2f}", "", "1.00", "1.00", f"{sent:.2f}", f"{sent / network * 1e3:.0f}"))
    heads = (
        "routing",
        "nodes per token",
        "GPUs per token",
        "fullest GPU / mean",
        "fullest node / mean",
        "to other nodes at V3's size, forward, MB per token",
        f"at {network:g} GB/s, the fullest node, µs per token",
    )
    traced, even = traffic[0][1].nodes_per_token, expected_spread(GROUPS, NUM_EXPERTS, TOP_K, OPEN_GROUPS)
    return (
        f"{len(VARIANTS)} nano models with V3's routing ({TOP_K} of {NUM_EXPERTS} experts, {GROUPS} groups of which "
        f"{OPEN_GROUPS} are open where limited), with and without router biases and balance loss, each trained for "
        f"{STEPS} steps on sums with running totals, and traced on {TRACED_ROWS * 128:,} tokens of sums they had not "
        f"seen. Experts lie in order over {SIMULATED_NODES} nodes of {SIMULATED_GPUS} GPUs. A token crosses the "
        "network once for each node it is sent to, in fp8 there and bf16 back; a layer takes as long as its fullest "
        "GPU. By formula: every choice as likely as any other, which is what `seeklet plan` takes.\n\n"
        f"{_table(heads, rows)}\n\nA limited router opens the groups whose two best experts score highest, and then "
        f"uses nearly all of them: {traced:.2f} nodes where the formula has {even:.2f}, so a plan's bytes across nodes "
        f"are {1 - even / traced:.0%} too few for such routing. Small, briefly trained, and on one kind of text: this "
        "shows which way the differences go, not how large V3's own are."
    )


def _least(size: Size, job: Job) -> float:
    return min(price.cost for price in size.prices[job.name])


def _days(days: float) -> str:
    return f"{days:,.0f} d" if days >= 10 else f"{days:.1f} d" if days >= 1 else f"{days * 24:.1f} h"


def _list(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
