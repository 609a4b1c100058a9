"""The growing latent cache behaves as transformers' DynamicCache, keeps latents only, and does not copy itself."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from seeklet.modeling.cache import GROWTH_TOKENS, LatentCache
from tests.modeling.nano import build_ours, draw_tokens

LAYERS = 2


def held(cache: Any) -> list[torch.Tensor]:
    """Return the keys and values of every layer."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def draw_states(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents (B, 1, S, 5) and rope keys (B, 1, S, 3)."""
    return torch.randn(batch, 1, length, 5), torch.randn(batch, 1, length, 3)


@torch.no_grad()
def append(caches: tuple[Any, Any], batch: int, length: int) -> None:
    """Append the same states to both caches, as generation does, and compare what they return and hold."""
    for layer in range(LAYERS):
        states = draw_states(batch, length)
        for actual, expected in zip(*(cache.update(*states, layer) for cache in caches), strict=True):
            assert torch.equal(actual, expected)
    assert_equal(caches)


def assert_equal(caches: tuple[Any, Any]) -> None:
    ours, theirs = caches
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(2, 0) == theirs.get_mask_sizes(2, 0)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys) and torch.equal(mine.values, other.values)


def filled(batch: int = 3, length: int = 4) -> tuple[Any, Any]:
    """Return (LatentCache, DynamicCache) holding the same states."""
    caches = (LatentCache(LAYERS), DynamicCache())
    append(caches, batch, length)
    return caches


@pytest.mark.parametrize("lengths", [(1,) * 5, (7, 1, 1, 3), (GROWTH_TOKENS, 1, GROWTH_TOKENS, 2, 300)])
def test_appending_equals_concatenating(lengths: tuple[int, ...]) -> None:
    caches = (LatentCache(LAYERS), DynamicCache())
    for length in lengths:
        append(caches, 2, length)


def reorder(cache: Any) -> None:
    cache.reorder_cache(torch.tensor([2, 0, 0]))


def crop(cache: Any) -> None:
    cache.crop(-2)


def crop_all(cache: Any) -> None:
    cache.crop(-4)


def keep_first_row(cache: Any) -> None:
    """As a view, which shares the buffer's memory and strides."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:1], layer.values[:1]


def select(cache: Any) -> None:
    cache.batch_select_indices(torch.tensor([2, 0, 1]))


def repeat(cache: Any) -> None:
    cache.batch_repeat_interleave(2)


@pytest.mark.parametrize(
    ("change", "batch"),
    [(reorder, 3), (crop, 3), (crop_all, 3), (select, 3), (repeat, 6), (keep_first_row, 1)],
    ids=["reorder", "crop", "crop all", "select", "repeat", "keep first row"],
)
def test_changed_and_continued_equals_dynamic_cache(change: Any, batch: int) -> None:
    """Twice over, with tokens in between: a buffer that no longer holds what counts is not written into."""
    caches = filled()
    for cache in caches:
        change(cache)
    assert_equal(caches)
    append(caches, batch, 1)
    append(caches, batch, 2)
    for cache in caches:
        crop(cache)
    append(caches, batch, 1)


def test_a_full_buffer_reordered_and_cropped_is_not_taken_for_its_copy() -> None:
    """The reordered copy has the shape and strides of the buffer, and cropped it leaves room."""
    caches = filled()
    append(caches, 3, GROWTH_TOKENS)
    assert held(caches[0])[0].is_contiguous()
    for cache in caches:
        reorder(cache)
        crop(cache)
    append(caches, 3, 1)


def test_cropped_tokens_are_overwritten_in_place() -> None:
    """As rejected drafts are, at every step of speculative decoding."""
    caches = filled()
    place = caches[0].layers[0].keys.data_ptr()
    for _ in range(5):
        append(caches, 3, 3)
        for cache in caches:
            crop(cache)
    assert caches[0].layers[0].keys.data_ptr() == place


def test_reset_and_refilled_equals_dynamic_cache() -> None:
    caches = filled()
    for cache in caches:
        cache.reset()
    append(caches, 2, 3)
    append(caches, 2, 1)


def test_deep_copy_is_independent() -> None:
    caches = filled()
    copies = copy.deepcopy(caches)
    append(caches, 3, 2)
    assert copies[0].get_seq_length() == 4
    append(copies, 3, 1)
    append(caches, 3, 1)
    assert_equal(copies)


@torch.no_grad()
def test_growing_moves_the_states_rarely() -> None:
    cache, places = LatentCache(1), set()
    length = 20 * GROWTH_TOKENS
    for _ in range(length):
        cache.update(*draw_states(1, 1), 0)
        places.add(held(cache)[0].untyped_storage().data_ptr())
    # Room grows by a quarter: 256 * 1.25^n tokens after n moves beyond the first few.
    assert len(places) <= 14
    assert held(cache)[0].untyped_storage().nbytes() <= 1.3 * length * 5 * 4


def test_gradients_flow_through_the_cache() -> None:
    cache = LatentCache(1)
    first, second = ([t.requires_grad_() for t in draw_states(1, 2)] for _ in range(2))
    cache.update(first[0], first[1], 0)
    keys, values = cache.update(second[0], second[1], 0)
    weights = torch.arange(4.0)[:, None]
    ((keys * weights).sum() + (values * weights).sum()).backward()
    for tensor, expected in ((first[0], weights[:2]), (second[1], weights[2:])):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad[0, 0], expected.expand(2, tensor.shape[-1]))


def test_recording_after_not_recording_gradients() -> None:
    """A prompt cached without gradients, then a trained continuation: what autograd kept is not written over."""
    cache = LatentCache(1)
    with torch.no_grad():
        cache.update(*draw_states(1, 3), 0)
    states = [t.requires_grad_() for t in draw_states(1, 1)]
    keys, _ = cache.update(states[0], states[1], 0)
    loss = keys.square().sum()
    with torch.no_grad():
        cache.update(*draw_states(1, 1), 0)
    loss.backward()
    assert states[0].grad is not None and torch.equal(states[0].grad, 2 * states[0])


def test_filled_in_inference_mode_and_continued_outside() -> None:
    ours, theirs = LatentCache(LAYERS), DynamicCache()
    with torch.inference_mode():
        append((ours, theirs), 2, 3)
    append((ours, theirs), 2, 1)
    with torch.inference_mode():
        append((ours, theirs), 2, 1)
    for cache in (ours, theirs):
        states = torch.ones(2, 1, 1, 5), torch.ones(2, 1, 1, 3)
        for layer in range(LAYERS):
            cache.update(states[0], states[1], layer)
    assert_equal((ours, theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_caches_the_latent_and_one_rope_key_a_token_and_layer(dtype: torch.dtype) -> None:
    model = build_ours().to(dtype).eval()
    c = model.config
    with torch.no_grad():
        cache = model(draw_tokens(2, 11), use_cache=True).past_key_values
    assert type(cache) is LatentCache and len(cache.layers) == c.num_hidden_layers
    nbytes = sum(tensor.numel() * tensor.itemsize for tensor in held(cache))
    assert nbytes / (2 * 11 * c.num_hidden_layers) == (c.kv_lora_rank + c.qk_rope_head_dim) * dtype.itemsize


def test_mtp_modules_leave_no_empty_layer_in_the_cache() -> None:
    model = build_ours(num_nextn_predict_layers=2).eval()
    with torch.no_grad():
        cache = model(draw_tokens(1, 4), use_cache=True).past_key_values
    assert [layer.get_seq_length() for layer in cache.layers] == [4, 4, 4]


@torch.no_grad()
def test_traced_updates_concatenate_and_eager_ones_go_on() -> None:
    caches = filled()
    traced = torch.compile(lambda cache, *states: cache.update(*states, 0), fullgraph=True, backend="eager")
    states = draw_states(3, 2)
    for mine, other in zip(traced(caches[0], *states), caches[1].update(*states, 0), strict=True):
        assert torch.equal(mine, other)
    append(caches, 3, 1)


def test_buffers_are_no_part_of_what_exporters_see() -> None:
    layer = filled()[0].layers[0]
    seen = [value for value in vars(layer).values() if isinstance(value, torch.Tensor | tuple | list)]
    assert [id(tensor) for tensor in seen] == [id(layer.keys), id(layer.values)]
