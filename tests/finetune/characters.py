"""A tokenizer with a token per character and the tags and template of the demo's: texts whose tokens can be counted."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seeklet.finetune.demo.tokenizer import BOS, CHARACTERS, EOS, PAD, TAGS, THINK, UNK
from seeklet.finetune.demo.tokenizer import build_tokenizer as build_with_numbers

VOCABULARY = (PAD, BOS, EOS, UNK, *TAGS, *CHARACTERS)

__all__ = ["EOS", "THINK", "VOCABULARY", "build_tokenizer"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer."""
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=build_with_numbers().chat_template,
    )
