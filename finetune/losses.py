"""The training loss of causal language models that are not seeklet's: next-token loss without ever holding all logits.

transformers' own classes compute the logits of every position in their forward, whatever is done with them afterwards.
seeklet's do not, and need nothing of this.
"""

from functools import cache, wraps
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from seeklet.modeling import SeekletForCausalLM
from seeklet.modeling.head_loss import summed_head_loss
from seeklet.modeling.mtp import IGNORE_INDEX, shift_left

from .errors import RecipeError

# Config fields by which some models change their logits behind the head, and the values that change nothing.
LOGIT_FIELDS = {
    "final_logit_softcapping": (None, 0),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "output_multiplier": (None, 1),
    "lm_head_multiplier": (None, 1),
}
# Of the model's own logits from the head's: far above rounding in bf16, far below any scale worth having.
PROBE_TOLERANCE = 0.02


def use_head_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Return `model`, whose forward with `labels` now returns only the loss, computed in chunks.

    The model becomes an instance of a subclass of its own class, as `torch.nn.utils.parametrize` does it; without
    labels it is what it was. A seeklet model is returned as it is.

    Raises:
        RecipeError: the logits of this model are more than its head applied to its hidden states.
    """
    if isinstance(model, SeekletForCausalLM):
        return model
    check_head(model)
    model.__class__ = _with_head_loss(type(model))
    return model


def check_head(model: PreTrainedModel, key: str = "model.path") -> None:
    """Check that the logits of a model are its head applied to its hidden states; `key` is where the recipe names it.

    Raises:
        RecipeError: they are more than that.
    """
    _check_fields(model, key)
    _check_logits(model, key)


def next_token_loss(
    model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None
) -> torch.Tensor:
    """Return the mean cross entropy (nats) of the head at the token after each position, or the sum over `num_items`.

    Args:
        model: whose output head is applied.
        hidden: (B, S, H), as the head takes them.
        labels: (B, S), not shifted, -100 where nothing is to be predicted. Labels (5, 7, -100, 9) ask position 0 for 7
            and position 2 for 9.
        num_items: labels in the whole batch of an optimiser step, so that losses add up over gradient accumulation.
    """
    targets = shift_left(labels, 1, IGNORE_INDEX).flatten()
    head: Any = model.get_output_embeddings()
    total = summed_head_loss(head, hidden.flatten(0, 1), targets)
    if num_items is None:
        num_items = (targets != IGNORE_INDEX).sum().clamp(min=1)
    return total / (num_items.to(total.device) if isinstance(num_items, torch.Tensor) else num_items)


@cache
def _with_head_loss(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    # With the signature of the class, by which `generate` and Trainer know what it takes.
    @wraps(model_class.forward)
    def forward(self: Any, *args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        if labels is None:
            return model_class.forward(self, *args, **kwargs)
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        loss: Any = next_token_loss(self, hidden, labels, num_items_in_batch)
        return CausalLMOutput(loss=loss)

    # Saved configs name the class, and transformers reads its source file: both are still those of the class itself.
    names = {"__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    members = {"forward": forward, "accepts_loss_kwargs": True, **names}
    return type(model_class.__name__, (model_class,), members)


def _check_fields(model: PreTrainedModel, key: str) -> None:
    config = model.config.get_text_config()
    for name, neutral in LOGIT_FIELDS.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise RecipeError(
                f"{key}: {type(model).__name__} has {name} {value} in its config; allowed: models whose logits "
                "are the output head's, since the loss is computed from the head in chunks"
            )


@torch.no_grad()
def _check_logits(model: PreTrainedModel, key: str) -> None:
    """Check on a few tokens what the loss relies on. A model whose weights are yet to come is taken at its word."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    tokens = torch.arange(4, device=embedding.weight.device)[None]
    training = model.training
    model.eval()
    logits = model(tokens, use_cache=False).logits.float()
    expected = head(model.base_model(tokens, use_cache=False).last_hidden_state).float()
    model.train(training)
    norms = [torch.linalg.vector_norm(x).item() for x in (logits - expected.to(logits.device), logits)]
    if not norms[0] <= PROBE_TOLERANCE * norms[1]:
        raise RecipeError(
            f"{key}: the logits of {type(model).__name__} are not its output head applied to its last hidden "
            f"states (off by {norms[0] / max(norms[1], 1e-30):.1%}); allowed: models whose loss is one of the head"
        )
