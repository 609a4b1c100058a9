"""What distillation is told beyond TRL's own config: sections of a recipe."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import RecipeError
from ..limits import ABOVE_ZERO, NOT_EMPTY, POSITIVE, SHARE


@dataclass(frozen=True, kw_only=True)
class OnPolicySettings:
    """How the teacher scores what the student samples; beta, temperature and lengths are fields of `trainer`."""

    alignment: Literal["tokens", "text"] = "tokens"
    """Whether the two are compared token by token, which takes the same tokenizer, or over spans of text that end in
    both, which takes none in common."""
    text_loss: Literal["sampled", "sorted"] = "sampled"
    """Of alignment text: the reverse KL estimated from the sampled text (unbiased, no vocabulary is compared), or the
    distance of the sorted probabilities (ULD, arXiv 2402.12030)."""
    use_mtp: bool = False
    """Whether a student with multi-token prediction modules drafts its samples with them."""

    def __post_init__(self):
        """Check that what is set has an effect.

        Raises:
            RecipeError: it has not.
        """
        if self.alignment == "tokens" and self.text_loss != "sampled":
            raise RecipeError(
                f"text_loss is {self.text_loss}, but alignment is tokens, which compares whole distributions; allowed: "
                "alignment: text, or no text_loss"
            )


@dataclass(frozen=True, kw_only=True)
class TopKSettings:
    """What is kept of a teacher's distributions, so that it need not be in memory when the student trains."""

    num_tokens: Annotated[int, POSITIVE] = 32
    """The most likely tokens kept for each position, with the probability of all others together."""
    temperature: Annotated[float, ABOVE_ZERO] = 1.0
    """The teacher's logits are divided by it before, the student's when it trains."""
    rows_per_shard: Annotated[int, POSITIVE] = 1024
    """Rows in one file: what is lost at most when the teacher is interrupted."""
    batch_size: Annotated[int, POSITIVE] = 8
    """Rows that the teacher reads at a time."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings(TopKSettings):
    """What is kept, and where."""

    dir: Annotated[str, NOT_EMPTY] | None = None
    """A folder that may hold a part of it, or all, from an earlier run; null takes one in output.dir."""


@dataclass(frozen=True, kw_only=True)
class OfflineSettings:
    """How a student learns from what was kept of its teacher."""

    beta: Annotated[float, SHARE] = 0.0
    """0 is the forward KL, which suits texts that are not the student's own; 1 the reverse KL; between them the JSD."""
