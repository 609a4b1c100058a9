"""The sections of a recipe that are no package's own."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..limits import ABOVE_ZERO, MAX_SHARD_GB, NOT_NEGATIVE, POSITIVE, SHARE, Pattern, Text

# A name of ours, or a function of the user's own: a dotted module, a colon, and what stands in it.
Metric = Annotated[
    str,
    Pattern(
        r"loss|exact_match|rouge|bleu|[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*",
        "loss, exact_match, rouge, bleu or a function by import path (package.module:function)",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model is trained, and how it is loaded."""

    path: Text
    """A folder, or a name on the Hub such as Qwen/Qwen2.5-1.5B-Instruct."""
    revision: Text | None = None
    """Branch, tag or commit of a model on the Hub."""
    tokenizer: Text | None = None
    """Where the tokenizer is when it is not with the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are held in; auto takes what the checkpoint says."""
    attn_implementation: Text | None = None
    """One of transformers' implementations, such as sdpa or flash_attention_2; null lets it choose."""
    device_map: Literal["auto"] | None = None
    """auto spreads the layers of one process over all GPUs, for a model too large for one and without accelerate."""
    fp8: Literal["dequantize", "keep"] = "dequantize"
    """What becomes of block-fp8 weights: expanded to `dtype`, or kept as a frozen base that only adapters train on."""
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    """Whether the weights are held in 4 or 8 bits by bitsandbytes, frozen, for adapters to train on (QLoRA): of
    DeepSeek-V3-architecture models every projection, routed experts too; of others the linear layers."""
    double_quantization: bool = False
    """Whether the scales of weights in 4 bits are quantised, too: about 4.1 bits a weight in place of 4.5."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the checkpoint may run on this machine."""


@dataclass(frozen=True, kw_only=True)
class MoeSettings:
    """The losses and the balancing that DeepSeek-V3-architecture models add; others have none of these."""

    mtp_loss: Literal["off", "detached", "full"] | None = None
    """Whether multi-token prediction is trained: not at all, alone, or with its gradient into the main model too; null
    takes full where texts are given (sft, distill-topk), and detached on the model's own samples (grpo, distill)."""
    mtp_loss_weight: Annotated[float, NOT_NEGATIVE] | None = None
    """Weight of the multi-token prediction loss; null takes the checkpoint's."""
    balance_loss_weight: Annotated[float, NOT_NEGATIVE] | None = None
    """Weight of the sequence-wise balance loss; null takes the checkpoint's."""
    bias_update_speed: Annotated[float, NOT_NEGATIVE] | None = None
    """How far a router bias moves per optimiser step; 0 freezes it, null takes the checkpoint's, and 0 on the model's
    own samples."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured on the held-out split, before and after training, and when training stops for it."""

    metrics: tuple[Metric, ...] = ("loss",)
    """loss, exact_match, rouge, bleu, or functions of your own by import path."""
    num_examples: Annotated[int, POSITIVE] = 200
    """At most this many held-out conversations are answered by generation."""
    num_samples: Annotated[int, NOT_NEGATIVE] = 10
    """Of these, how many the report shows side by side."""
    max_new_tokens: Annotated[int, POSITIVE] = 256
    """An answer is cut off after this many tokens."""
    stop: tuple[Text, ...] = ()
    """Texts that end an answer, beside the model's own end-of-sequence token."""
    batch_size: Annotated[int, POSITIVE] = 8
    """Conversations answered at a time."""
    use_mtp: bool = False
    """Whether multi-token-prediction modules draft the answers: the same answers, sooner where they guess well."""
    lm_eval: tuple[Text, ...] = ()
    """Tasks of lm-evaluation-harness that run as well, where that is installed."""
    lm_eval_limit: Annotated[int, POSITIVE] | None = None
    """At most this many problems per task of lm-evaluation-harness."""
    patience: Annotated[int, POSITIVE] | None = None
    """Training stops when this many evaluations in a row brought no better held-out loss; null never stops it."""
    min_improvement: Annotated[float, NOT_NEGATIVE] = 0.0
    """By how much the held-out loss must fall to count as better."""


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """Where the run writes."""

    dir: Text


@dataclass(frozen=True, kw_only=True)
class OutputSettings(FolderSettings):
    """Where the run writes, and what it leaves there beside checkpoints, metrics and the model card draft."""

    merge: bool = False
    """Whether the adapter is merged into the model, and the whole saved too, when training is done."""
    merge_dtype: Literal["auto", "float32", "bfloat16", "float16", "fp8"] = "auto"
    """What merged weights are written in; auto takes the base's, and bfloat16 for a block-fp8 base unless `model.fp8`
    keeps it. fp8 is DeepSeek's block-fp8, for models of its architecture. The precision `model.quantization` holds
    weights in has no part in it: the adapter is merged into those of the checkpoint."""
    plots: bool = True
    """Whether PNG plots of loss, learning rate and expert load are drawn."""
    max_shard_gb: Annotated[float, ABOVE_ZERO] = MAX_SHARD_GB
    """Largest file of a saved model, in gigabytes."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How the model is sampled while it learns from rewards; temperature and the like are TRL's, in trainer."""

    use_mtp: bool = False
    """Whether multi-token prediction modules draft: samples of the same distribution, sooner where they guess well."""
    replay_routing: bool = False
    """Whether training sends each token to the experts that the rollout sent it to (mixtures of experts only)."""
    record_router: bool = False
    """Whether the share of experts chosen otherwise in training is logged, and router logits of some rows are kept."""
    on_error: float = 0.0
    """What a sample is given that a reward cannot score."""
    max_failed_share: Annotated[float, SHARE] = 0.5
    """Of the last 256 samples of a reward, the share it may fail to score before the run ends."""
