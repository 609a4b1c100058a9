"""The settings of an evaluation of reasoning."""

from dataclasses import dataclass
from typing import Annotated

from ..errors import RecipeError
from ..limits import NOT_NEGATIVE, POSITIVE, PROBABILITY, SHARE, Text
from ..sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class ReasoningEvaluationSettings:
    """How often each problem is tried, and what is reported. The defaults are those of DeepSeek-R1's paper."""

    num_samples: Annotated[int, POSITIVE] = 16
    """Attempts at each problem, over which pass@1 is averaged; the paper takes 4 to 64, by the size of the test."""
    max_new_tokens: Annotated[int, POSITIVE] = 32768
    """A completion is cut off after so many tokens."""
    temperature: Annotated[float, NOT_NEGATIVE] = 0.6
    """Logits are divided by it; 0 takes the most likely token, and then one sample is all there is."""
    top_p: Annotated[float, PROBABILITY] = 0.95
    """Only the most likely tokens that make up this probability are drawn from."""
    top_k: Annotated[int, NOT_NEGATIVE] = 0
    """Only so many tokens are drawn from; 0 is all."""
    min_p: Annotated[float, SHARE] = 0.0
    """Only tokens with at least this share of the largest probability are drawn from; 0 is all."""
    use_mtp: bool = False
    """Whether multi-token prediction modules draft: the same distribution, sooner where they guess well."""
    batch_size: Annotated[int, POSITIVE] = 64
    """Completions sampled at a time."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """What all samples follow from."""
    pass_at: tuple[Annotated[int, POSITIVE], ...] = ()
    """The k of pass@k beside 1; () takes `num_samples`."""
    majority_at: tuple[Annotated[int, POSITIVE], ...] = ()
    """The k of maj@k; () takes `num_samples`."""
    threshold: float | None = None
    """The total reward that counts as right; null: every reward that verifies must give its best."""
    difficulty: Text | None = "difficulty"
    """The column of the problems by whose values figures are given too, where they have it."""
    chat_template: Text | None = None
    """A shipped template or a path; null takes the tokenizer's own."""
    num_shown: Annotated[int, NOT_NEGATIVE] = 4
    """Problems that the report shows an attempt at."""

    def __post_init__(self):
        for name, most in (("pass_at", self.pass_at), ("majority_at", self.majority_at)):
            if most and max(most) > self.num_samples:
                raise RecipeError(f"{name} has {max(most)}; allowed: up to num_samples, {self.num_samples}")
        if not self.temperature and self.num_samples > 1:
            raise RecipeError(
                f"num_samples is {self.num_samples} and temperature 0, so all are the same; allowed: num_samples 1, or "
                "temperature above 0"
            )

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            use_mtp=self.use_mtp,
        )
