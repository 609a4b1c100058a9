"""AdapterSettings: the `adapter:` section of a recipe, which says what LoRA adapts and how."""

from dataclasses import dataclass
from typing import Literal, get_args

from .errors import RecipeError

Init = Literal["default", "gaussian"]

# What each plain name reaches; `lora.targets` finds the modules. Anything else is taken for a name of PEFT's own.
PLAIN_TARGETS = {
    "attention": "every projection of the attention",
    "dense_mlp": "the feed-forwards that every token passes alone (not those beside routed experts)",
    "shared_experts": "the experts that every token passes beside its routed ones",
    "routed_experts": "the experts that the router chooses, computed split",
    "router": "the matrix that scores the experts",
    "mtp": "all of the multi-token prediction modules, but their routers",
}


@dataclass(frozen=True)
class AdapterSettings:
    """LoRA: y = W x + s B A x, with A (rank, in), B (out, rank) and s = alpha / rank; only A and B are trained.

    Attributes:
        targets: what is adapted: plain names (`PLAIN_TARGETS`) in any combination and, beside or instead of them,
            module names as PEFT matches them: a whole name, or its end ("q_proj", "mlp.down_proj").
        rank: of A and B; for routed experts, of each expert.
        alpha: the scale before it is divided by the rank.
        dropout: of the input of A, while training.
        rslora: divide alpha by the root of the rank instead, so that one learning rate fits all ranks.
        init: of A: PEFT's default (Kaiming uniform) or "gaussian" (normal, 1 / rank); B starts as zeros.
        modules_to_save: modules trained whole and saved beside the adapter, such as "embed_tokens".
    """

    targets: tuple[str, ...]
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    init: Init = "default"
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self):
        """Check every value.

        Raises:
            RecipeError: one is not allowed; names the field.
        """
        _check("rank", self.rank, isinstance(self.rank, int) and self.rank >= 1, "an integer from 1")
        _check("alpha", self.alpha, self.alpha > 0, "a number above 0")
        _check("dropout", self.dropout, 0 <= self.dropout < 1, "a number from 0 to below 1")
        _check("init", self.init, self.init in get_args(Init), " or ".join(get_args(Init)))
        named = not isinstance(self.targets, str) and len(self.targets) > 0 and all(self.targets)
        _check("targets", self.targets, named, f"a list of names: {', '.join(PLAIN_TARGETS)}, or module names")
        twice = sorted({name for name in self.targets if self.targets.count(name) > 1})
        _check("targets", twice, not twice, "each name once")


def _check(field: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise RecipeError(f"adapter.{field} is {value!r}; allowed: {allowed}")
