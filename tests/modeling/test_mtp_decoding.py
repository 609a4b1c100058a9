"""`generate(use_mtp=True)` gives what plain greedy `generate` gives, in fewer passes of the main model."""

from typing import Any

import pytest
import torch

from tests.modeling.drafting import (
    LENGTHS,
    PROMPT,
    assert_same,
    build_drafter,
    decode_without_cache,
    drafter,
    draw_walks,
    generate,
    prompt_inputs,
)
from tests.modeling.nano import PAD


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", ["wrong", "right"])
def test_greedy_equals_plain_over_200_tokens(kind: str, depth: int, batch: int) -> None:
    drafted, _ = assert_same(drafter(kind, depth), prompt_inputs(batch), max_new_tokens=200)
    assert drafted.sequences.shape == (batch, PROMPT + 200)
    # Far behind what it was trained on, even the good drafter is wrong more often than not.
    assert drafted.num_accepted_drafts >= (60 if kind == "right" else 0)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_good_drafts_save_passes_of_the_main_model(depth: int, batch: int) -> None:
    drafted, _ = assert_same(drafter("right", depth), prompt_inputs(batch), max_new_tokens=31)
    assert drafted.num_accepted_drafts / drafted.num_drafts > 0.8
    assert 30 / drafted.num_main_steps > 1 + 0.8 * depth


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_drafts_are_those_of_training(depth: int) -> None:
    model, num_new = drafter("mixed", depth), 30
    inputs = prompt_inputs(4)
    num_steps, num_accepted = [], 0
    for row, length in enumerate(LENGTHS):
        prompt = inputs["input_ids"][row : row + 1, PROMPT - length :]
        expected = decode_without_cache(model, prompt, num_new)
        alone = generate(model, {"input_ids": prompt}, True, max_new_tokens=num_new)
        assert torch.equal(alone.sequences, expected[0])
        assert (alone.num_main_steps, alone.num_accepted_drafts) == expected[1:]
        assert alone.num_drafts == depth * alone.num_main_steps
        num_steps.append(expected[1])
        num_accepted += expected[2]
    assert 0.1 < num_accepted / (depth * sum(num_steps)) < 0.95
    together = generate(model, inputs, True, max_new_tokens=num_new)
    counts = (together.num_main_steps, together.num_drafts, together.num_accepted_drafts)
    assert counts == (max(num_steps), depth * sum(num_steps), num_accepted)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompts_shorter_than_the_depth(depth: int) -> None:
    model = drafter("right", depth)
    assert_same(model, {"input_ids": torch.tensor([[5]])}, max_new_tokens=20)
    inputs = {"input_ids": torch.tensor([[PAD, PAD, 5], [1, 2, 3]])}
    inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
    assert_same(model, inputs, max_new_tokens=20)


def test_one_row_with_padding() -> None:
    inputs = {"input_ids": torch.tensor([[PAD, PAD, 4, 5, 6]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    assert_same(drafter("mixed", 2), inputs, max_new_tokens=40)


def test_eager_attention() -> None:
    model = build_drafter(2, attn_implementation="eager")
    assert_same(model, prompt_inputs(1), max_new_tokens=20)
    assert_same(model, prompt_inputs(3), max_new_tokens=20)


@pytest.mark.parametrize("num_new", range(1, 8))
def test_the_maximum_length_cuts_an_accepted_run(num_new: int) -> None:
    for batch in (1, 3):
        drafted, _ = assert_same(drafter("right", 3), prompt_inputs(batch), max_new_tokens=num_new)
        assert drafted.num_main_steps <= (num_new - 1 + 3) // 4 + 1


@pytest.mark.parametrize("kind", ["right", "mixed"])
@pytest.mark.parametrize("batch", [1, 4])
def test_end_of_sequence_cuts_an_accepted_run(kind: str, batch: int) -> None:
    model, inputs = drafter(kind, 3), prompt_inputs(batch)
    plain = generate(model, inputs, False, max_new_tokens=30).sequences
    lengths = set()
    for token in plain[0, PROMPT : PROMPT + 6].tolist():
        settings = {"eos_token_id": [token, 7], "pad_token_id": PAD, "max_new_tokens": 30}
        drafted, plain = assert_same(model, inputs, **settings, output_scores=True, output_logits=True)
        lengths.add(drafted.sequences.shape[1])
        assert len(drafted.scores) == len(drafted.logits) == drafted.sequences.shape[1] - PROMPT
        ended = torch.zeros(batch, dtype=torch.bool)
        for step, (scores, logits) in enumerate(zip(drafted.scores, drafted.logits, strict=True)):
            assert not scores[ended].any() and not logits[ended].any()
            torch.testing.assert_close(scores[~ended], plain.scores[step][~ended])
            torch.testing.assert_close(logits[~ended], plain.logits[step][~ended])
            new = drafted.sequences[:, PROMPT + step]
            assert (new[ended] == PAD).all()
            ended |= (new == token) | (new == 7)
        assert_same_cache(drafted.past_key_values, plain.past_key_values)
    assert len(lengths) > 1 or batch > 1


def assert_same_cache(actual: Any, expected: Any) -> None:
    assert actual.get_seq_length() == expected.get_seq_length()
    for ours, theirs in zip(actual.layers, expected.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys)
        torch.testing.assert_close(ours.values, theirs.values)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_returned_cache_is_that_of_plain_decoding_and_can_be_continued(batch: int) -> None:
    model, inputs = drafter("mixed", 2), prompt_inputs(batch)
    drafted, plain = assert_same(model, inputs, max_new_tokens=21)
    assert_same_cache(drafted.past_key_values, plain.past_key_values)
    # The next turn of a conversation, decoded with drafts from the cache, and anew without either.
    text = torch.cat((drafted.sequences, draw_walks(batch, 5)), dim=1)
    mask = torch.cat((inputs["attention_mask"], torch.ones(batch, 26, dtype=torch.long)), dim=1)
    turn = {"input_ids": text, "attention_mask": mask}
    expected = generate(model, turn, False, max_new_tokens=20)
    continued = generate(model, turn | {"past_key_values": drafted.past_key_values}, True, max_new_tokens=20)
    assert torch.equal(continued.sequences, expected.sequences)
    assert continued.past_key_values is drafted.past_key_values
    assert_same_cache(continued.past_key_values, expected.past_key_values)
    # Given only what is new in it, as transformers allows with a mask of the whole text.
    only_new = {"input_ids": text[:, -6:], "attention_mask": mask, "past_key_values": plain.past_key_values}
    continued = generate(model, only_new, True, max_new_tokens=20)
    assert torch.equal(continued.sequences[:, 6:], expected.sequences[:, text.shape[1] :])


def test_the_prompt_may_be_embeddings() -> None:
    model, inputs = drafter("mixed", 3), prompt_inputs(3)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    drafted, _ = assert_same(model, given, max_new_tokens=20)
    assert drafted.sequences.shape == (3, 20)
    counts = (drafted.num_main_steps, drafted.num_accepted_drafts)
    drafted = generate(model, inputs, True, max_new_tokens=20)
    assert counts == (drafted.num_main_steps, drafted.num_accepted_drafts)


def test_plain_tensor_unless_asked_for_more() -> None:
    model, inputs = drafter("right", 1), prompt_inputs(2)
    tokens = generate(model, inputs, True, max_new_tokens=9, return_dict_in_generate=False)
    assert torch.equal(tokens, generate(model, inputs, False, max_new_tokens=9, return_dict_in_generate=False))


def test_ended_ranks_step_on_until_their_peers_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model, left = drafter("mixed", 2), [5]

    def peers_take_five_more(this_peer_finished: bool, synced_gpus: bool, device: Any) -> bool:
        if this_peer_finished:
            assert synced_gpus
            left[0] -= 1
        return left[0] > 0

    passes = []
    hook = model.model.layers[-1].register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(model, "_has_unfinished_sequences", peers_take_five_more)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)
    inputs = prompt_inputs(1)
    drafted = generate(model, inputs, True, max_new_tokens=12, synced_gpus=True)
    monkeypatch.undo()
    hook.remove()
    expected = generate(model, inputs, False, max_new_tokens=12)
    assert torch.equal(drafted.sequences, expected.sequences)
    assert_same_cache(drafted.past_key_values, expected.past_key_values)
    # The prompt, every step, and four steps more than this rank needs.
    assert len(passes) == 1 + drafted.num_main_steps + 4


@pytest.mark.parametrize("depth", [1, 2])
def test_ended_rows_leave_where_only_sequences_are_asked_for(depth: int) -> None:
    model, inputs, sizes = drafter("mixed", depth), prompt_inputs(4), []
    settings = {"max_new_tokens": 60, "eos_token_id": [3, 9, 20], "pad_token_id": PAD}
    plain = model.generate(**inputs, **settings, do_sample=False)
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    drafted = model.generate(**inputs, **settings, do_sample=False, use_mtp=True)
    assert torch.equal(drafted, plain)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 > sizes[-1]
    sizes.clear()
    assert torch.equal(generate(model, inputs, True, **settings).sequences, plain)
    assert set(sizes) == {4}
    hook.remove()
