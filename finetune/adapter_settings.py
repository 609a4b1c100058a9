"""AdapterSettings: the `adapter:` section of a recipe, which says what LoRA adapts and how."""

from dataclasses import dataclass
from typing import Annotated, Literal

from .errors import RecipeError
from .limits import ABOVE_ZERO, NOT_EMPTY, POSITIVE, Range

# What each plain name reaches; `lora.targets` finds the modules. Anything else is taken for a name of PEFT's own.
PLAIN_TARGETS = {
    "attention": "every projection of the attention",
    "dense_mlp": "the feed-forwards that every token passes alone (not those beside routed experts)",
    "shared_experts": "the experts that every token passes beside its routed ones",
    "routed_experts": "the experts that the router chooses, computed split",
    "router": "the matrix that scores the experts",
    "mtp": "all of the multi-token prediction modules, but their routers",
}


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """LoRA: y = W x + s B A x, with A (rank, in), B (out, rank) and s = alpha / rank; only A and B are trained."""

    targets: tuple[Annotated[str, NOT_EMPTY], ...]
    """Plain names (attention, dense_mlp, shared_experts, routed_experts, router, mtp) in any combination, or module
    names as PEFT matches them: whole, or the end of one (q_proj, mlp.down_proj)."""
    rank: Annotated[int, POSITIVE] = 16
    """Of A and B; for routed experts, of each expert."""
    alpha: Annotated[float, ABOVE_ZERO] = 32.0
    """The scale before it is divided by the rank."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the input of A that is dropped while training."""
    rslora: bool = False
    """Whether alpha is divided by the root of the rank instead, so that one learning rate fits all ranks."""
    init: Literal["default", "gaussian"] = "default"
    """How A begins: PEFT's default (Kaiming uniform) or normal with a deviation of 1 / rank; B begins as zeros."""
    modules_to_save: tuple[Annotated[str, NOT_EMPTY], ...] = ()
    """Modules trained whole and saved beside the adapter, such as embed_tokens."""

    def __post_init__(self):
        """Check the targets.

        Raises:
            RecipeError: there are none, or one stands there twice.
        """
        allowed = f"each of {', '.join(PLAIN_TARGETS)}, or module names, once"
        if isinstance(self.targets, str) or not self.targets or len(set(self.targets)) < len(self.targets):
            raise RecipeError(f"adapter.targets is {self.targets!r}; allowed: a list of at least one name, {allowed}")
