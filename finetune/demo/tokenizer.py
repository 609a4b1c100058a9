"""The demo's tokenizer: a token per character or number, and the turn, reasoning and answer tags of DeepSeek-R1."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..reasoning import END_THINK, THINK

PAD, BOS, EOS, UNK = "<｜pad｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜unk｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
ANSWER, END_ANSWER = "<answer>", "</answer>"

# Ordinary added tokens, as in DeepSeek-R1's own tokenizer: special ones would be dropped by
# `decode(skip_special_tokens=True)`, which is how RL trainers decode, and every reward would be 0.
TAGS = (USER, ASSISTANT, THINK, END_THINK, ANSWER, END_ANSWER)
CHARACTERS = "0123456789+-*/=();., \n"
NUMBERS = tuple(str(number) for number in range(10, 100))
VOCABULARY = (PAD, BOS, EOS, UNK, *TAGS, *CHARACTERS, *NUMBERS)
"""Every token, at its id."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer, chat template included, padding on the left as batched generation needs.

    Two digits are one token, as up to three are in DeepSeek-V3's own: with a token per digit half of the single sums in
    traces were wrong after as many steps. Characters outside `CHARACTERS` become the unknown token.
    """
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    # Not ".", which leaves newlines out.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[1-9][0-9]|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        # Would glue "; -3" into ";-3" and break the round trip.
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )
