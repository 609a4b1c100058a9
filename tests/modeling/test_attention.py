"""Latent attention: its two formulations agree, no token sees what it may not, adapters count in both."""

import pytest
import torch

from tests.modeling.nano import (
    build_ours,
    draw_tokens,
    relative_error,
)

PACKED_LENGTHS = (5, 7, 2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_do_not_see_each_other(attention: str, training: bool) -> None:
    """Also with the default `use_cache`, for which transformers' own model lets them."""
    model = build_ours(attn_implementation=attention).double().train(training)
    tokens = draw_tokens(1, sum(PACKED_LENGTHS))
    positions = torch.cat([torch.arange(n) for n in PACKED_LENGTHS])[None]
    packed = model(tokens, position_ids=positions).logits
    alone = [model(part).logits for part in tokens.split(PACKED_LENGTHS, dim=1)]
    assert relative_error(packed, torch.cat(alone, dim=1)) <= 1e-12
