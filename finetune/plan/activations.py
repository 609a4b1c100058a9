"""Activations of any batch on any depth, from a few traced steps of shallow versions of the model.

What a step keeps grows with tokens, and by the same for each further layer of a kind; so the bytes at the peak are
`a + b T + dense c T + sparse d T` for T tokens in so many dense and sparse layers, and traces of one layer more and
twice the tokens give all four numbers; for each part of a step by itself, since in a shallow model the loss or the
gradient of the embedding takes most, in a deep one the layers. Attention is of the kind that never holds all scores.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from seeklet.modeling import SeekletConfig
from seeklet.modeling.kernels.linear_cross_entropy.reference import CHUNK_ELEMENTS, MIN_CHUNK_ROWS

from .model_config import held_dtype
from .request import Request
from .trace import StepBytes, trace_step

# Short sequences, since tracing attention takes quadratic time; longer than those whose attention is absorbed. Of these
# so many that the head's loss takes more than one chunk of rows.
TRACED_LENGTH, TRACED_SEQUENCES = 256, (2, 4)
# Models of so many layers, and batches of so many tokens, are traced as they are.
MOST_LAYERS, MOST_TOKENS = 8, 4096


@dataclass(frozen=True)
class Activations:
    """Bytes at the peak of a step that are neither weights, gradients nor optimizer states."""

    base: float
    """Bytes whatever the batch is."""
    per_token: float
    """Outside the layers: embedding, head, multi-token prediction, what a layer takes while it is computed again."""
    dense: float
    """Per token and layer."""
    sparse: float
    num_dense: int
    num_sparse: int
    others: tuple["Activations", ...] = ()
    """Of other parts of a step: the largest counts."""

    def of(self, tokens: int, share_of_layers: float = 1.0) -> int:
        """Return the bytes for `tokens` tokens in that share of the layers."""
        layers = (self.dense * self.num_dense + self.sparse * self.num_sparse) * share_of_layers
        own = int(max(0.0, self.base + (self.per_token + layers) * tokens))
        return max([own, *(other.of(tokens, share_of_layers) for other in self.others)])


def fit_activations(request: Request, say: Callable[[str], None] = lambda _: None) -> Activations:
    """Return the activations of a request's model, by tracing; `say` is told of each trace."""
    config: Any = request.config
    sparse_model = isinstance(config, SeekletConfig)
    num_dense = (
        min(config.first_k_dense_replace, config.num_hidden_layers) if sparse_model else config.num_hidden_layers
    )
    num_sparse = config.num_hidden_layers - num_dense
    few, many = TRACED_SEQUENCES

    inside: dict[Any, int] = {}

    def trace(dense: int, sparse: int, sequences: int) -> tuple[int, ...]:
        layers = {"num_hidden_layers": dense + sparse}
        if sparse_model:
            layers["first_k_dense_replace"] = dense
        return _trace(request, layers, sequences, TRACED_LENGTH, say, inside=inside).activations

    least = (1 if num_dense else 0, 1 if num_sparse else 0)
    deeper = [(least[0] + 1, least[1])] * bool(num_dense) + [(least[0], least[1] + 1)] * bool(num_sparse)
    # Where autocast keeps copies of the weights, a layer takes bytes that do not grow with tokens as well.
    counts = (few, many) if _is_mixed(request) else (many,)
    traced = {(layers, count): trace(*layers, count) for layers in deeper for count in counts}
    traced |= {(least, count): trace(*least, count) for count in (few, many)}

    def fit(phase: int) -> Activations:
        low, high = (traced[least, count][phase] for count in (few, many))
        slope = (high - low) / ((many - few) * TRACED_LENGTH)
        base, per_token, kinds = high - slope * many * TRACED_LENGTH, slope, [0.0, 0.0]
        for layers in deeper:
            kind = 0 if layers[0] > least[0] else 1
            more = traced[layers, many][phase] - high
            fixed = 0.0
            if _is_mixed(request):
                # What two numbers of tokens have in common.
                fixed = 2 * (traced[layers, few][phase] - low) - more if many == 2 * few else 0.0
            kinds[kind] = (more - fixed) / (many * TRACED_LENGTH)
            base += fixed * ((num_dense, num_sparse)[kind] - least[kind])
            per_token -= kinds[kind] * least[kind]
        return Activations(base, per_token, kinds[0], kinds[1], num_dense, num_sparse)

    first, *others = (fit(phase) for phase in range(3))
    return replace(first, others=tuple(others))


def trace_whole(request: Request, at_once: bool) -> StepBytes | None:
    """Return the traced step of a request's own model and batch, or None where that would take too long.

    `at_once` as in `trace_step`.
    """
    small = request.config.num_hidden_layers <= MOST_LAYERS
    if not small or request.micro_batch * request.tokens > MOST_TOKENS:
        return None
    # Made layer by layer: copies of one layer are counted, and do not run.
    layers, batch = {"num_hidden_layers": request.config.num_hidden_layers}, (request.micro_batch, request.tokens)
    return _trace(request, layers, *batch, lambda _: None, at_once, min(request.accumulation, 2))


def logits_bytes(request: Request, head_is_trained: bool) -> int:
    """Return what the head's loss holds at once: a chunk of logits, and its gradient in fp32 where it is trained."""
    vocabulary, hidden = request.config.vocab_size, request.config.hidden_size
    rows = min(max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // vocabulary), request.micro_batch * request.tokens)
    # In the dtype that is computed with, and once more in fp32 for the softmax.
    chunk = rows * vocabulary * (request.compute_dtype.itemsize + 4)
    return chunk + (4 * vocabulary * hidden if head_is_trained else 0)


def _trace(
    request: Request,
    layers: dict[str, int],
    sequences: int,
    tokens: int,
    say: Callable[[str], None],
    at_once: bool = True,
    micro_batches: int = 1,
    inside: dict[Any, int] | None = None,
) -> StepBytes:
    num_layers = layers.get("num_hidden_layers", request.config.num_hidden_layers)
    say(f"a step of {num_layers} layers, {sequences} x {tokens} tokens")
    model: Any = request.build(**layers)
    if _gathers_cast(request):
        # FSDP gathers weights in the dtype that is computed with.
        model = model.to(request.compute_dtype)
    with torch.autocast("cpu", torch.bfloat16) if _is_mixed(request) else nullcontext():
        return trace_step(
            model,
            sequences,
            tokens,
            micro_batches,
            at_once=at_once,
            inside=inside,
            **request.forward_options(model),
        )


def _gathers_cast(request: Request) -> bool:
    return request.layout == "fsdp" and _holds_fp32(request) and request.compute_dtype != torch.float32


def _is_mixed(request: Request) -> bool:
    """Return whether weights in fp32 are cast where they are used."""
    return _holds_fp32(request) and request.compute_dtype == torch.bfloat16 and not _gathers_cast(request)


def _holds_fp32(request: Request) -> bool:
    return held_dtype(request.config, request.recipe.model) == torch.float32
