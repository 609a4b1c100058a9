"""The Modelfile by which Ollama takes a GGUF file: template, stop tokens, sampling, system message, licence.

https://docs.ollama.com/modelfile
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .chat_templates import OllamaTemplate

# What DeepSeek recommends for R1 and its distilled models, and publishes in their generation_config.json.
R1_SAMPLING = {"temperature": 0.6, "top_p": 0.95}
# What Ollama calls the values of a generation config.
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
_QUOTES = '"""'


def is_quotable(text: str) -> bool:
    """Return whether Ollama reads `text` between three quotation marks as it is."""
    return _QUOTES not in text and not text.endswith('"')


def write_modelfile(
    weights: str,
    template: OllamaTemplate,
    *,
    begins_with: str,
    system: str | None,
    sampling: dict[str, Any],
    stops: Sequence[str],
    licence: str | None,
) -> str:
    """Return a Modelfile for the GGUF file `weights` beside it.

    Args:
        weights: the file's name.
        template: what writes a conversation.
        begins_with: the token of the beginning, where the GGUF file's tokenizer does not add it by itself.
        system: the system message of conversations that have none.
        sampling: by Ollama's names.
        stops: texts at which an answer ends.
        licence: its text or name.
    """
    parts = [f"FROM ./{weights}", f"TEMPLATE {_QUOTES}{begins_with}{template.text}{_QUOTES}"]
    if system is not None:
        parts.append(f"SYSTEM {_QUOTES}{system}{_QUOTES}")
    parts += [f"PARAMETER {name} {value}" for name, value in sampling.items()]
    parts += [f'PARAMETER stop "{text}"' for text in stops]
    if licence is not None:
        parts.append(f"LICENSE {_QUOTES}{licence}{_QUOTES}")
    return "\n".join(parts) + "\n"


def sampling_of(folder: Path) -> dict[str, Any]:
    """Return how answers are sampled, by Ollama's names: as generation_config.json says, else as DeepSeek does R1's."""
    values = _generation_values(folder)
    said = {ours: values[theirs] for theirs, ours in _PARAMETERS.items() if values.get(theirs) is not None}
    return said if "temperature" in said else R1_SAMPLING | said


def stops_of(folder: Path, tokenizer: PreTrainedTokenizerBase, template: OllamaTemplate) -> list[str]:
    """Return the texts at which an answer ends: tokens of generation_config.json and tokenizer, markers of turns."""
    said = _generation_values(folder).get("eos_token_id")
    ids = [token for token in (said if isinstance(said, list) else [said]) if isinstance(token, int)]
    texts = [tokenizer.convert_ids_to_tokens(token) for token in ids] + [tokenizer.eos_token]
    return list(dict.fromkeys(text for text in (*texts, *template.stops) if isinstance(text, str) and text))


def licence_in(folder: Path) -> str | None:
    """Return the text of the licence in `folder`; None where there is none."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="replace").strip()
            return text if is_quotable(text) else None
    return None


def _generation_values(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
