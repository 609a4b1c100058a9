"""Generated tokens equal those of transformers' own model on the same weights, however they are generated."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from seeklet.modeling.cache import LatentCache
from tests.modeling.nano import PAD, build_ours, build_pair, draw_tokens, padding_mask

NUM_NEW = 200


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Return (stock, ours) on the same weights, which never stop by themselves."""
    models = build_pair()
    for model in models:
        model.eval().generation_config.eos_token_id = None
    return models


def generate(model: Any, tokens: torch.Tensor, num_new: int = NUM_NEW, **kwargs: Any) -> torch.Tensor:
    """Return the new tokens (B, num_new), greedily unless asked otherwise."""
    # A mask, as transformers would take a generated PAD in the prompt for padding.
    settings = {"do_sample": False, "max_new_tokens": num_new, "attention_mask": torch.ones_like(tokens)} | kwargs
    return model.generate(tokens, **settings)[:, tokens.shape[1] :]


def test_greedy_equals_stock_over_200_tokens(pair: tuple[Any, Any]) -> None:
    stock, ours = pair
    prompt = draw_tokens(2, 7)
    expected = generate(stock, prompt)
    assert expected.shape == (2, NUM_NEW)
    # Not a loop of few tokens, in which an error could hide.
    assert min(len(row.unique()) for row in expected) > 25
    assert torch.equal(generate(ours, prompt), expected)


@pytest.mark.parametrize("cache", ["static", "dynamic", "none", "stock"])
def test_greedy_equals_stock_with_any_cache(pair: tuple[Any, Any], cache: str) -> None:
    stock, ours = pair
    prompt, num_new = draw_tokens(2, 7), 40
    given: dict[str, Any] = {
        "static": {"cache_implementation": "static"},
        "dynamic": {"cache_implementation": "dynamic"},
        "none": {"use_cache": False},
        "stock": {"past_key_values": DynamicCache()},
    }[cache]
    assert torch.equal(generate(ours, prompt, num_new, **given), generate(stock, prompt, num_new))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_equals_stock_by_either_attention(attention: str) -> None:
    stock, ours = build_pair(attn_implementation=attention)
    prompt = draw_tokens(2, 7)
    for model in (stock, ours):
        model.eval().generation_config.eos_token_id = None
    assert torch.equal(generate(ours, prompt, 40), generate(stock, prompt, 40))


@pytest.mark.parametrize("static", [False, True])
def test_left_padded_batch_equals_stock_and_each_row_alone(pair: tuple[Any, Any], static: bool) -> None:
    stock, ours = pair
    prompt, mask = draw_tokens(3, 9), padding_mask((9, 4, 1), 9, "left")
    prompt = prompt.masked_fill(mask == 0, PAD)
    given, num_new = ({"cache_implementation": "static"}, 50) if static else ({}, NUM_NEW)
    tokens = generate(ours, prompt, num_new, attention_mask=mask, **given)
    assert torch.equal(tokens, generate(stock, prompt, num_new, attention_mask=mask))
    for row, length in enumerate((9, 4, 1)):
        alone = generate(ours, prompt[row : row + 1, 9 - length :], 50, **given)
        assert torch.equal(tokens[row : row + 1, :50], alone)


def test_rows_that_end_early_are_padded_as_stock_pads_them() -> None:
    stock, ours = build_pair()
    prompt = draw_tokens(4, 5)
    for model in (stock, ours):
        # Eight tokens end a row, so that rows end at different steps.
        model.eval().generation_config.eos_token_id = list(range(2, 10))
    expected = generate(stock, prompt, 100)
    assert len({int((row != PAD).sum()) for row in expected}) > 1
    assert torch.equal(generate(ours, prompt, 100), expected)


@pytest.mark.parametrize("length_penalty", [1.0, 0.3])
def test_beam_search_equals_stock(pair: tuple[Any, Any], length_penalty: float) -> None:
    stock, ours = pair
    prompt = draw_tokens(2, 7)
    settings = {"num_beams": 2, "length_penalty": length_penalty, "num_return_sequences": 2}
    assert torch.equal(generate(ours, prompt, 40, **settings), generate(stock, prompt, 40, **settings))


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.6, "top_p": 0.95}, {"top_k": 5, "num_return_sequences": 3}], ids=str
)
def test_sampling_with_a_seed_equals_stock(pair: tuple[Any, Any], settings: dict[str, Any]) -> None:
    stock, ours = pair
    prompt, tokens = draw_tokens(2, 7), []
    for model in (stock, ours):
        torch.manual_seed(3)
        tokens.append(generate(model, prompt, 40, do_sample=True, **settings))
    assert torch.equal(*tokens)


def test_chunked_prefill_equals_prefill_at_once(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    prompt = draw_tokens(2, 23)
    expected = generate(ours, prompt, 40)
    assert torch.equal(generate(ours, prompt, 40, prefill_chunk_size=5), expected)


@pytest.mark.parametrize("static", [False, True])
def test_continuing_from_a_returned_cache_equals_one_run(pair: tuple[Any, Any], static: bool) -> None:
    """As in a conversation: the second prompt is the first, its answer, and new tokens."""
    _, ours = pair
    prompt, more = draw_tokens(2, 7), draw_tokens(2, 5, seed=4)
    given = {"past_key_values": StaticCache(config=ours.config, max_cache_len=80)} if static else {}
    first = ours.generate(prompt, max_new_tokens=20, do_sample=False, return_dict_in_generate=True, **given)
    assert first.past_key_values.get_seq_length() == 26
    second = torch.cat((first.sequences, more), dim=1)
    expected = generate(ours, second, 40)
    assert torch.equal(generate(ours, second, 40, past_key_values=first.past_key_values), expected)


def test_a_shared_prefix_is_cached_once_and_copied(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    prefix = draw_tokens(1, 9)
    with torch.no_grad():
        cache = ours(prefix, use_cache=True).past_key_values
    for seed in (5, 6):
        prompt = torch.cat((prefix, draw_tokens(1, 4, seed)), dim=1)
        tokens = generate(ours, prompt, 30, past_key_values=copy.deepcopy(cache))
        assert torch.equal(tokens, generate(ours, prompt, 30))
    assert cache.get_seq_length() == 9


def test_generates_with_the_growing_cache_by_default(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    output = ours.generate(draw_tokens(2, 7), max_new_tokens=2, return_dict_in_generate=True)
    assert type(output.past_key_values) is LatentCache


@pytest.mark.parametrize("same_weights", [True, False])
def test_assisted_decoding_equals_plain(pair: tuple[Any, Any], same_weights: bool) -> None:
    """By an assistant that is always right, and by one that hardly ever is."""
    _, ours = pair
    assistant = copy.deepcopy(ours) if same_weights else build_ours(seed=9, num_hidden_layers=1).eval()
    assistant.generation_config.eos_token_id = None
    prompt = draw_tokens(1, 7)
    assert torch.equal(generate(ours, prompt, 40, assistant_model=assistant), generate(ours, prompt, 40))


def test_prompt_lookup_equals_plain(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    prompt = draw_tokens(1, 6).repeat(1, 4)
    assert torch.equal(generate(ours, prompt, 40, prompt_lookup_num_tokens=4), generate(ours, prompt, 40))


def test_generating_from_embeddings_equals_from_tokens(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    prompt = draw_tokens(2, 7)
    tokens = ours.generate(inputs_embeds=ours.get_input_embeddings()(prompt), max_new_tokens=30, do_sample=False)
    assert torch.equal(tokens, generate(ours, prompt, 30))


@pytest.mark.parametrize(
    "overrides",
    [
        {"q_lora_rank": None},
        {"rope_interleave": False},
        {"tie_word_embeddings": True, "attention_bias": True},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 32},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 8.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 32,
            }
        },
    ],
    ids=["direct queries", "rope in halves", "tied, with bias", "dynamic rope", "yarn"],
)
def test_variants_generate_as_stock(overrides: dict[str, Any]) -> None:
    stock, ours = build_pair(**overrides)
    for model in (stock, ours):
        model.eval().generation_config.eos_token_id = None
    prompt = draw_tokens(2, 7)
    assert torch.equal(generate(ours, prompt, 40), generate(stock, prompt, 40))


def test_mtp_modules_do_not_change_plain_generation() -> None:
    model = build_ours(num_nextn_predict_layers=1).eval()
    bare = build_ours().eval()
    bare.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("model.layers.3.")})
    prompt = draw_tokens(2, 7)
    assert torch.equal(generate(model, prompt, 30), generate(bare, prompt, 30))
