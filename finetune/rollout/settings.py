"""The settings of rejection sampling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import RecipeError
from ..limits import ABOVE_ZERO, NOT_NEGATIVE, POSITIVE, PROBABILITY, SHARE, Text
from ..sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class RejectionSamplingSettings:
    """What is sampled, what of it is kept, and how much of each prompt."""

    chat_template: Text | None = None
    """A shipped template or a path; null takes the tokenizer's own."""
    max_prompt_tokens: Annotated[int, POSITIVE] | None = None
    """Longer prompts are left out, and counted."""

    num_samples: Annotated[int, POSITIVE] = 4
    """Attempts at each prompt."""
    max_new_tokens: Annotated[int, POSITIVE] = 2048
    """A completion that reaches it without an end is not kept."""
    temperature: Annotated[float, NOT_NEGATIVE] = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_p: Annotated[float, PROBABILITY] = 1.0
    """Only the most likely tokens that make up this probability are drawn from."""
    top_k: Annotated[int, NOT_NEGATIVE] = 0
    """Only so many tokens are drawn from; 0 is all."""
    min_p: Annotated[float, SHARE] = 0.0
    """Only tokens with at least this share of the largest probability are drawn from; 0 is all."""
    use_mtp: bool = False
    """Whether multi-token prediction modules draft: the same distribution, sooner where they guess well."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """With the prompts and `batch_size`, what all samples follow from."""
    batch_size: Annotated[int, POSITIVE] = 64
    """Completions sampled at a time; progress is saved after as many."""

    threshold: float | None = None
    """The total reward that counts as right; null: every reward that verifies must give its best."""
    min_rewards: Mapping[str, float] = field(default_factory=dict)
    """The least score of single rewards, by name, for what is right as well; what has none of it is not kept."""
    requires_format: bool = True
    """Whether only `<think>…</think>` once each and then an answer is kept."""
    requires_reasoning: bool = True
    """Whether completions with nothing between the tags are left out."""
    min_tokens: Annotated[int, POSITIVE] = 1
    """Shorter completions are left out."""
    max_tokens: Annotated[int, POSITIVE] | None = None
    """Longer completions are left out."""
    max_paragraph_characters: Annotated[int, POSITIVE] | None = None
    """Completions with a longer paragraph are left out; R1 left out long paragraphs."""
    max_foreign_share: Annotated[float, SHARE] = 0.1
    """The share of letters that may be of other scripts than most are; Greek ones, LaTeX and variables do not count."""

    max_per_prompt: Annotated[int, POSITIVE] = 4
    """At most so many completions of a prompt are kept, so that easy prompts do not fill the dataset."""
    prefer: Literal["first", "shortest"] = "first"
    """Which are kept of more: in order of sampling, or of length."""
    always_solved: Literal["keep", "one", "drop"] = "keep"
    """What becomes of prompts of which all attempts are right: as others, one completion, or none."""
    never_solved: Literal["drop", "list"] = "list"
    """Whether prompts of which no attempt is right are written to unsolved.jsonl, for a better teacher."""

    evaluation_sets: tuple[Text, ...] = ()
    """Files or data sets of the Hub, read as prompts are, that no prompt and no completion may overlap with."""
    ngram: Annotated[int, POSITIVE] = 13
    """So many words in a row that are in an evaluation set too count as overlap."""
    min_ngram: Annotated[int, POSITIVE] = 8
    """Texts of fewer words than `ngram`, but at least so many, overlap where all of one is in the other; still shorter
    ones only where they are the same."""

    def __post_init__(self):
        if self.min_ngram > self.ngram:
            raise RecipeError(f"min_ngram is {self.min_ngram} and ngram {self.ngram}; allowed: min_ngram <= ngram")
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise RecipeError(
                f"max_tokens is {self.max_tokens} and min_tokens {self.min_tokens}; allowed: max_tokens >= min_tokens"
            )
        if not self.temperature and self.num_samples > 1:
            raise RecipeError(
                f"num_samples is {self.num_samples} and temperature 0, so all are the same; allowed: num_samples 1, or "
                f"temperature {ABOVE_ZERO}"
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
