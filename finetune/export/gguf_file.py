"""What a finished GGUF file says of itself: whether it is whole, and what its tokenizer adds to a text."""

from pathlib import Path

from ..errors import ExportError

_KIND, _RULES = "tokenizer.ggml.model", "tokenizer.ggml.pre"


def check_whole(file: Path) -> None:
    """Look a finished file over: a header that can be read, and all the bytes that it promises.

    Raises:
        ExportError: it is not whole.
    """
    # Of the extra gguf, whose absence is a finding.
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        promised = max((int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors), default=0)
    except (ValueError, OSError, IndexError, KeyError) as problem:
        raise ExportError(f"{file.name}: what llama.cpp wrote cannot be read back: {problem}") from None
    if not promised or file.stat().st_size < promised:
        raise ExportError(f"{file.name}: what llama.cpp wrote has {file.stat().st_size:,} bytes of {promised:,}")


def adds_beginning(file: Path) -> bool:
    """Return whether llama.cpp puts the token of the beginning before a text by itself.

    The file says; where it does not, sentencepiece vocabularies have it and byte-level ones do not, but for Llama 3's
    (llama-vocab.cpp).
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    said = fields.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said.contents())
    kind, rules = (fields[key].contents() if key in fields else None for key in (_KIND, _RULES))
    return kind == "llama" or rules == "llama-bpe"
