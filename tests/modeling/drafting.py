"""Nano models whose MTP modules draft well, badly or not at all, and greedy decoding with drafts written out."""

import functools
from typing import Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from seeklet.modeling.mtp_decoding import SeekletMTPOutput
from tests.modeling.nano import PAD, build_ours, padding_mask

VOCAB = 32
MAX_DEPTH = 3
PROMPT = 17
LENGTHS = (17, 3, 10, 6)


def draw_walks(batch: int, length: int) -> torch.Tensor:
    """Return token ids (batch, length) in [1, VOCAB), each row going round with a step of its own, 1, 2 or 3."""
    start, step = torch.randint(VOCAB - 1, (batch, 1)), torch.randint(1, 4, (batch, 1))
    return 1 + (start + step * torch.arange(length)) % (VOCAB - 1)


@functools.cache
def walker() -> Any:
    """Return a model with MAX_DEPTH modules that has learnt to continue walks of some 50 tokens."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model = build_ours(vocab_size=VOCAB, num_hidden_layers=2, num_nextn_predict_layers=MAX_DEPTH)
        model.config.mtp_loss_weight = 1.0
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(60):
            walks = draw_walks(10, 48)
            model(walks, labels=walks).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@functools.cache
def drafter(kind: str, depth: int) -> Any:
    """Return a model whose drafts are nearly all "right" (on walks of some 50 tokens), "mixed" or "wrong"."""
    if kind == "wrong":
        return build_drafter(depth)
    return build_drafter(depth, walker(), damage=1.0 if kind == "mixed" else 0.0)


def build_drafter(depth: int, weights: Any = None, damage: float = 0.0, **overrides: Any) -> Any:
    """Return a float64 model with `depth` MTP modules, random or as in `weights`, which never stops by itself.

    `damage` is the scale of noise on what the modules make of their inputs, by which drafts become wrong while the
    main model stays as it is.
    """
    sizes = {"vocab_size": VOCAB, "num_hidden_layers": 2, "num_nextn_predict_layers": depth}
    model = build_ours(**sizes | overrides)
    if weights is not None:
        state = weights.state_dict()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    generator = torch.Generator().manual_seed(3)
    for module in model.model.layers[model.config.num_hidden_layers :]:
        weight = module.eh_proj.weight.data
        weight += damage * weight.std() * torch.randn(weight.shape, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval().double()


@torch.no_grad()
def decode_without_cache(model: Any, prompt: torch.Tensor, num_new: int) -> tuple[torch.Tensor, int, int]:
    """Return (tokens (1, S + num_new), main steps, accepted drafts) of greedy decoding of one row (1, S) with drafts.

    Every state is computed anew from the whole text, MTP states by `mtp_hidden_states`, which training uses.
    """
    depth, decoder = model.config.num_nextn_predict_layers, model.model
    tokens, total = prompt, prompt.shape[1] + num_new
    num_steps = num_accepted = 0

    def predict(hidden: torch.Tensor) -> torch.Tensor:
        return model.lm_head(hidden).argmax(-1)

    tokens = torch.cat((tokens, predict(decoder(tokens).last_hidden_state)[:, -1:]), dim=1)
    while (length := tokens.shape[1]) < total:
        drafted = tokens
        for k in range(depth):
            states = decoder.mtp_hidden_states(decoder(drafted).last_hidden_state, drafted)
            drafted = torch.cat((drafted, predict(states[k])[:, length - 2 : length - 1]), dim=1)
        right = predict(decoder(drafted).last_hidden_state)[:, length - 1 :]
        kept = 0
        while kept < depth and drafted[0, length + kept] == right[0, kept]:
            kept += 1
        tokens = torch.cat((tokens, right[:, : kept + 1]), dim=1)[:, :total]
        num_steps += 1
        num_accepted += min(kept, total - length)
    return tokens, num_steps, num_accepted


def prompt_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Return a prompt of walks: one row, or several padded on the left."""
    tokens = draw_walks(batch, PROMPT)
    if batch == 1:
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    mask = padding_mask(LENGTHS[:batch], PROMPT, "left")
    return {"input_ids": tokens.masked_fill(mask == 0, PAD), "attention_mask": mask}


def generate(model: Any, inputs: dict[str, Any], use_mtp: bool, **kwargs: Any) -> Any:
    """Return the output of greedy `generate`, with everything transformers puts beside the sequences."""
    settings = {"do_sample": False, "return_dict_in_generate": True} | kwargs
    output = model.generate(**inputs, use_mtp=use_mtp, **settings)
    if settings["return_dict_in_generate"]:
        assert type(output) is (SeekletMTPOutput if use_mtp else GenerateDecoderOnlyOutput)
    return output


def assert_same(model: Any, inputs: dict[str, Any], **kwargs: Any) -> tuple[Any, Any]:
    """Assert that drafts change no token; return (output with drafts, plain output)."""
    plain = generate(model, inputs, False, **kwargs)
    drafted = generate(model, inputs, True, **kwargs)
    assert torch.equal(drafted.sequences, plain.sequences)
    return drafted, plain
