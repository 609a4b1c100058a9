"""GPU hours and dollars of pre-training, R1-style reinforcement learning and distillation, on any number of GPUs.

The same counts, efficiency and traffic as in a plan of a recipe; what is assumed beside them stands here and on the
study's page.
"""

from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel

from .cluster import Cluster, Gpu, known_gpus, make_cluster
from .communication import sharded_traffic, training_expert_traffic
from .counts import Counts, TokenFlops, cache_numbers, count_flops, count_parameters
from .model_config import build_on_meta, published_config
from .speed import SECONDS_PER_HOUR, Work, decode_seconds_per_token, make_bill, seconds_per_token

MODELS = ("qwen2.5-1.5b", "qwen2.5-7b", "moonlight-16b-a3b", "qwen2.5-32b", "llama-3.3-70b", "deepseek-v3")
GPU = "h100"
NUM_GPUS = (8, 32, 128, 512, 2048)
# Left of a GPU's memory for weights, gradients and optimizer; activations and what cannot be used take the rest.
USABLE = 0.8
# Two sequences of 4,096; fewer where the batch, shared out, has fewer.
TOKENS_PER_PASS = 8192
# GPUs that share one set of experts, as DeepSeek-V3's training did on 8 nodes (report, section 3.1).
EXPERT_PARALLEL = 64


@dataclass(frozen=True)
class Job:
    """What is to be trained."""

    name: str
    tokens: float
    length: int
    """Of a sequence, on average."""
    batch: int
    """Tokens of an optimiser step."""
    work: Work
    bytes_per_parameter: int


@dataclass(frozen=True)
class Sampling:
    """How reinforcement learning samples."""

    rollouts: int
    """One after the other."""
    samples: int
    """Of a rollout, at the same time."""
    longest: float
    """Tokens of a rollout's longest sample, which all others wait for."""


# Weights and gradients in bf16, master weights and both moments of AdamW in fp32: 2 + 2 + 4 + 4 + 4.
PRE_TRAINING = Job("pre-training", 1e12, 4096, 16 * 2**20, Work(), 16)
# R1-Zero: 10,400 steps of 32 questions x 16 samples, sampled for 16 steps at a time (DeepSeek-R1, Nature 645, methods).
# Assumed: 6,000 tokens each on average; a forward pass more for the reference model, which is held in bf16, and one for
# recomputed activations.
RL = Job("R1-style RL", 10_400 * 512 * 6_000.0, 6_000, 512 * 6_000, Work(recompute=2), 18)
# One sample of each rollout reaches the limit: 32,768 tokens in 8,200 of the steps, 65,536 in the others.
R1_ZERO = Sampling(650, 16 * 512, (8_200 * 32_768 + 2_200 * 65_536) / 10_400)
# R1's distillation: 800,000 traces, 2 epochs. Assumed: 4,000 tokens each on average, 128 traces a step.
DISTILLATION = Job("distillation", 2 * 800_000 * 4_000.0, 4_000, 128 * 4_000, Work(recompute=1), 16)
JOBS = (PRE_TRAINING, RL, DISTILLATION)


@dataclass(frozen=True)
class Price:
    """Of a job on a number of GPUs."""

    num_gpus: int
    days: float
    gpu_hours: float
    cost: float
    """In USD."""
    waited: float
    """Share of the time in which GPUs wait for traffic, or for a rollout's longest sample."""


@dataclass(frozen=True)
class Size:
    """What a model of the study costs."""

    name: str
    total: int
    active: int
    prices: dict[str, list[Price]]
    """By job, for each of `NUM_GPUS` that holds it while all weights are trained."""


@dataclass(frozen=True)
class Published:
    """A published figure beside what is derived here, both in GPU hours."""

    what: str
    source: str
    derived: float
    published: float


def cost_of(name: str) -> Size:
    """Return what the three jobs cost for a published model on each number of GPUs that holds it."""
    counts = _counted(name)[0]
    clusters = [make_cluster(GPU, number) for number in NUM_GPUS]
    prices = {job.name: [price_of(name, job, each) for each in clusters if fits(counts, job, each)] for job in JOBS}
    return Size(name, counts.total, counts.active, prices)


def fits(counts: Counts, job: Job, cluster: Cluster) -> bool:
    """Return whether `cluster` holds the weights, gradients and optimizer of a job, shared out over all GPUs."""
    held = job.bytes_per_parameter * (counts.total + counts.mtp)
    return held <= USABLE * cluster.gpu.memory_bytes * cluster.num_gpus


def price_of(name: str, job: Job, cluster: Cluster) -> Price:
    """Return what a job costs for a published model: computing, and waiting for traffic and for samples."""
    flops = count_flops(_counted(name)[1], job.length)
    gpu, number = cluster.gpu, cluster.num_gpus
    computing = seconds_per_token(flops, job.work, gpu)
    waiting = max(0.0, traffic_seconds(name, job, cluster) - computing)
    if job is RL:
        together, longest = sampling_seconds(name, flops, cluster)
        computing += together * number / job.tokens
        waiting += max(0.0, longest - together) * number / job.tokens
    bill = make_bill(job.tokens, computing + waiting, gpu, number)
    waited = waiting / (computing + waiting)
    assert bill.cost is not None
    return Price(number, bill.hours / 24, bill.gpu_hours, bill.cost, waited)


def traffic_seconds(name: str, job: Job, cluster: Cluster) -> float:
    """Return the seconds that a token's share of the traffic takes on a GPU: FSDP's, and of experts' tokens."""
    counts, config = _counted(name)[0], published_config(name)
    sharing = min(EXPERT_PARALLEL, cluster.num_gpus) if counts.routed else 1
    # Of experts that GPUs share, each gathers and reduces its own part; in bf16, gradients too.
    moved = 2 * (counts.total + counts.mtp - counts.routed + counts.routed // sharing)
    tokens = min(TOKENS_PER_PASS, job.batch // cluster.num_gpus)
    experts = training_expert_traffic(config, cluster, sharing, recompute=job.work.recompute > 0)
    return (experts + sharded_traffic(cluster, moved, moved, tokens)).seconds(cluster)


def sampling_seconds(name: str, flops: TokenFlops, cluster: Cluster) -> tuple[float, float]:
    """Return the seconds that all samples take on `cluster`, and those that the longest of each rollout takes alone.

    A replica is the fewest GPUs whose memory is no more than half weights; the rest is for caches. Reading at
    `BANDWIDTH_EFFICIENCY` is all that counts, not the communication in between. The longest sample reads all weights,
    too: others that are nearly as long need every expert.
    """
    counts, gpu = _counted(name)[0], cluster.gpu
    weights, cache_bytes = 2 * counts.total, 2 * cache_numbers(published_config(name))
    usable, replica = USABLE * gpu.memory_bytes, 1
    while weights / replica > usable / 2 and replica < cluster.num_gpus:
        replica *= 2
    fitting = (usable - weights / replica) // (cache_bytes * RL.length)
    rows = max(1, int(min(R1_ZERO.samples / cluster.num_gpus, fitting)))
    # On average a sample has half of its tokens.
    each = decode_seconds_per_token(weights, cache_bytes * RL.length / 2, rows * replica, flops.forward, gpu)
    alone = decode_seconds_per_token(weights / replica, cache_bytes * R1_ZERO.longest / 2 / replica, 1, 0.0, gpu)
    return RL.tokens * each / cluster.num_gpus, R1_ZERO.rollouts * R1_ZERO.longest * alone


def compare_with_published() -> list[Published]:
    """Return published GPU hours beside what the same counts and the same efficiency give."""
    h800, h100 = known_gpus()["h800"], known_gpus()["h100"]
    zero = price_of("deepseek-v3", RL, make_cluster("h800", 512)).gpu_hours
    return [
        Published(
            "DeepSeek-V3, 1T tokens, H800",
            "arXiv 2412.19437, section 1",
            pre_training_hours("deepseek-v3", 4096, 1e12, h800),
            180e3,
        ),
        Published(
            "DeepSeek-V3, 14.8T tokens, H800",
            "arXiv 2412.19437, table 1",
            pre_training_hours("deepseek-v3", 4096, 14.8e12, h800),
            2.664e6,
        ),
        Published(
            "Llama-3.1-405B, 15.6T tokens, H100",
            "its model card",
            pre_training_hours("llama-3.1-405b", 8192, 15.6e12, h100),
            30.84e6,
        ),
        Published("DeepSeek-R1-Zero, RL of V3, 512 H800", "Nature 645, 198 hours on 64 x 8 GPUs", zero, 512 * 198.0),
    ]


def pre_training_hours(name: str, length: int, tokens: float, gpu: Gpu) -> float:
    """Return the GPU hours of computing that pre-training a published model on `tokens` tokens takes."""
    return tokens * seconds_per_token(count_flops(_counted(name)[1], length), Work(), gpu) / SECONDS_PER_HOUR


@cache
def _counted(name: str) -> tuple[Counts, PreTrainedModel]:
    model = build_on_meta(published_config(name), torch.bfloat16)
    return count_parameters(model), model
