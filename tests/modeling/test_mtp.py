"""Multi-token prediction: what each module sees and predicts, where gradients go, and that nothing leaks in."""

from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

from seeklet.modeling.mtp import mtp_labels, shift_left
from tests.modeling.nano import (
    PAD,
    SIZES,
    build_ours,
    draw_tokens,
    gradients,
    padding_mask,
    relative_error,
)

EXACT = 1e-10
TOKENS = torch.tensor([[10, 11, 12, 13, 14]])


def test_labels_of_the_docstring() -> None:
    packed = torch.tensor([[0, 1, 2, 0, 1]])
    assert mtp_labels(TOKENS, 1).tolist() == [[12, 13, 14, -100, -100]]
    assert mtp_labels(TOKENS, 2).tolist() == [[13, 14, -100, -100, -100]]
    assert mtp_labels(TOKENS, 1, packed).tolist() == [[12, -100, -100, -100, -100]]


@pytest.mark.parametrize("depth", [4, 5, 9])
def test_labels_of_a_sequence_too_short_are_all_ignored(depth: int) -> None:
    assert mtp_labels(TOKENS, depth).tolist() == [[-100] * 5]


def test_labels_of_packed_rows_share_or_have_their_own_positions() -> None:
    labels = torch.cat((TOKENS, TOKENS + 10))
    shared = mtp_labels(labels, 1, torch.tensor([[0, 1, 0, 1, 2]]))
    assert shared.tolist() == [[-100, -100, 14, -100, -100], [-100, -100, 24, -100, -100]]
    own = mtp_labels(labels, 1, torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]))
    assert own.tolist() == [[-100, -100, 14, -100, -100], [22, 23, 24, -100, -100]]


def test_labels_left_out_stay_left_out() -> None:
    assert mtp_labels(torch.tensor([[-100, 11, -100, 13, 14]]), 1).tolist() == [[-100, 13, 14, -100, -100]]


def test_shift_left() -> None:
    assert shift_left(TOKENS, 2).tolist() == [[12, 13, 14, 0, 0]]
    assert shift_left(TOKENS, 5, -1).tolist() == shift_left(TOKENS, 7, -1).tolist() == [[-1] * 5]
    embeddings = torch.randn(2, 3, 4)
    assert torch.equal(shift_left(embeddings, 1)[:, :2], embeddings[:, 1:])
    assert torch.equal(shift_left(embeddings, 1)[:, 2], torch.zeros(2, 4))


def test_module_equals_the_one_transformers_infers_with() -> None:
    """Same weights by their published names, same hidden states and embeddings."""
    model = build_ours(num_nextn_predict_layers=1, attn_implementation="eager").eval()
    ours = model.model.layers[3]
    sizes = {name: value for name, value in SIZES.items() if name != "num_nextn_predict_layers"}
    config = DeepseekV3Config(**sizes)
    config._attn_implementation = "eager"
    theirs = MtpLayer(config, DeepseekV3DecoderLayer, DeepseekV3RMSNorm, layer_idx=3).eval()
    own = ("enorm", "hnorm", "eh_proj")
    weights = {
        name.replace("shared_head.norm", "post_norm")
        if name.split(".")[0] in (*own, "shared_head")
        else f"mtp_block.{name}": tensor
        for name, tensor in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    tokens = draw_tokens(2, 7)
    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state
        [actual] = model.model.mtp_hidden_states(hidden, tokens)
        positions = torch.arange(7)[None]
        embeddings = shift_left(model.model.embed_tokens(tokens), 1)
        mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1)[None, None]
        expected = theirs(
            embeddings,
            hidden,
            position_embeddings=model.model.rotary_emb(embeddings, positions),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=None,
        )
    assert relative_error(actual, expected) <= 1e-5


def test_loss_is_added_with_its_weight_in_training_only() -> None:
    tokens = draw_tokens(2, 9)
    model = build_ours(num_nextn_predict_layers=2, mtp_loss_weight=0.3, balance_loss_weight=0.0).double()
    output = model(tokens, labels=tokens)
    assert relative_error(output.loss, output.lm_loss + 0.3 * output.mtp_loss) <= EXACT
    output = model.eval()(tokens, labels=tokens)
    assert output.mtp_loss is None and torch.equal(output.loss, output.lm_loss)


def test_gradient_reaches_every_module_the_trunk_and_what_they_share() -> None:
    """What the MTP loss adds to each gradient: nothing where its weight is 0, something everywhere else."""
    tokens = draw_tokens(2, 9)
    results = {}
    for weight in (0.0, 0.5):
        settings: dict[str, Any] = {"balance_loss_weight": 0.0, "num_experts_per_tok": 8, "topk_group": 4}
        model = build_ours(num_nextn_predict_layers=2, mtp_loss_weight=weight, **settings).double()
        model(tokens, labels=tokens).loss.backward()
        results[weight] = gradients(model)
    own = ("model.layers.3.", "model.layers.4.")
    assert all(not g.any() for name, g in results[0.0].items() if name.startswith(own))
    unchanged = [name for name, g in results[0.5].items() if relative_error(g, results[0.0][name]) < 1e-6]
    # The last norm shapes what the module is given, too. Nothing is out of its reach.
    assert unchanged == []


def test_detached_gradient_stays_in_the_modules() -> None:
    """There it is that of the full mode; everywhere else it is that of no MTP loss at all."""
    tokens = draw_tokens(2, 9)
    results, losses = {}, {}
    for mode in ("off", "detached", "full"):
        model = build_ours(num_nextn_predict_layers=2, mtp_loss_weight=0.5, balance_loss_weight=0.0).double()
        output = model(tokens, labels=tokens, mtp_loss=mode)
        output.loss.backward()
        results[mode], losses[mode] = gradients(model), output.mtp_loss
    assert losses["off"] is None and torch.equal(losses["detached"], losses["full"])
    own = ("model.layers.3.", "model.layers.4.")
    for name, actual in results["detached"].items():
        is_own = name.startswith(own)
        assert relative_error(actual, results["full" if is_own else "off"][name]) <= EXACT, name
    reached = [name for name in results["full"] if not torch.equal(results["full"][name], results["off"][name])]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= set(reached)


def test_an_unknown_mode_is_refused() -> None:
    tokens = draw_tokens(1, 5)
    with pytest.raises(ValueError, match="mtp_loss is 'half'; allowed: off, detached, full"):
        build_ours(num_nextn_predict_layers=1)(tokens, labels=tokens, mtp_loss="half")


@pytest.mark.parametrize("depths", [1, 2])
def test_other_packed_sequences_do_not_change_the_loss(depths: int) -> None:
    model = build_ours(num_nextn_predict_layers=depths, balance_loss_weight=0.0).double()
    tokens = draw_tokens(1, 12)
    positions = torch.cat((torch.arange(4), torch.arange(5), torch.arange(3)))[None]
    labels = tokens.clone()
    # Only the middle sequence is learnt from; the others are changed.
    labels[0, :5], labels[0, 9:] = -100, -100
    changed = tokens.clone()
    changed[0, :4], changed[0, 9:] = tokens[0, :4] + 1, tokens[0, 9:] + 1
    outputs = [model(x % 97, position_ids=positions, labels=labels) for x in (tokens, changed)]
    alone = model(tokens[:, 4:9], labels=labels[:, 4:9])
    for output in outputs:
        assert relative_error(output.mtp_loss, alone.mtp_loss) <= EXACT
        assert relative_error(output.lm_loss, alone.lm_loss) <= EXACT


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("depths", [1, 2])
def test_padding_does_not_change_the_loss(depths: int, side: str) -> None:
    model = build_ours(num_nextn_predict_layers=depths, balance_loss_weight=0.0).double()
    tokens, mask = draw_tokens(2, 9), padding_mask((9, 5), 9, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    labels = tokens.masked_fill(mask == 0, -100)
    losses = []
    for padding in (PAD, 40):
        given = tokens.masked_fill(mask == 0, padding)
        losses.append(model(given, attention_mask=mask, position_ids=positions, labels=labels).mtp_loss)
    assert relative_error(losses[1], losses[0]) <= EXACT
    rows = [tokens[:1], tokens[1:, 4:] if side == "left" else tokens[1:, :5]]
    per_depth = torch.zeros(depths, dtype=torch.float64)
    for depth in range(1, depths + 1):
        count = 0
        for row in rows:
            states = model.model.mtp_hidden_states(model.model(row).last_hidden_state, row)
            targets = mtp_labels(row, depth)
            count += (targets != -100).sum()
            per_depth[depth - 1] += model.head_loss(states[depth - 1], targets, 1).detach()
        per_depth[depth - 1] /= count
    assert relative_error(losses[0], per_depth.mean()) <= EXACT


def test_too_short_sequences_count_zero_and_not_nan() -> None:
    model = build_ours(num_nextn_predict_layers=2)
    tokens = draw_tokens(2, 2)
    output = model(tokens, labels=tokens)
    output.loss.backward()
    assert output.mtp_loss.item() == 0 and output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_losses_of_micro_batches_add_up_to_that_of_the_batch() -> None:
    """With the number of labels of all of them given, as Trainer does; rows labelled alike, for the balance loss."""
    settings: dict[str, Any] = {"mtp_loss_weight": 0.3, "balance_loss_weight": 0.5}
    model = build_ours(num_nextn_predict_layers=2, **settings).double()
    tokens = draw_tokens(4, 9)
    labels = tokens.clone()
    labels[:, :3] = -100
    num_items = (labels != -100).sum()
    whole = model(tokens, labels=labels, num_items_in_batch=num_items)
    whole.loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        parts.append(model(tokens[rows], labels=labels[rows], num_items_in_batch=num_items))
        parts[-1].loss.backward()
    for name in ("loss", "lm_loss", "mtp_loss"):
        assert relative_error(parts[0][name] + parts[1][name], whole[name]) <= EXACT
    # A mean over sequences, of which the parts hold one and three.
    assert relative_error((parts[0].balance_loss + 3 * parts[1].balance_loss) / 4, whole.balance_loss) <= EXACT
    for name, gradient in gradients(model).items():
        assert relative_error(gradient, expected[name]) <= EXACT


def test_given_the_number_of_its_labels_a_batch_has_its_mean_loss() -> None:
    model = build_ours(num_nextn_predict_layers=1).double()
    tokens = draw_tokens(2, 9)
    # Eight predictions a row by the main model, seven by the module.
    mean, summed = model(tokens, labels=tokens), model(tokens, labels=tokens, num_items_in_batch=16)
    assert relative_error(summed.lm_loss, mean.lm_loss) <= EXACT
    assert relative_error(summed.mtp_loss, mean.mtp_loss * 14 / 16) <= EXACT
