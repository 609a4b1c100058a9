"""The saved checkpoint, loaded by stock transformers in a fresh process, against the model that saved it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from seeklet.modeling import SeekletError, SeekletForCausalLM

# Float32 logits of magnitude 10 to 30, summed in another order: 1e-5 is what was seen.
MAX_LOGIT_DIFFERENCE = 1e-3


class ReloadError(SeekletError, RuntimeError):
    """Stock transformers could not load the saved checkpoint at all."""


@dataclass(frozen=True)
class StockReload:
    """How the logits of stock transformers compare with ours, over all positions that are not padding."""

    model_class: str
    transformers: str
    seeklet_imported: bool
    missing_tensors: list[str]
    unexpected_tensors: list[str]
    """What stock has no place for: the MTP module."""
    positions: int
    max_logit_difference: float
    max_logit: float
    same_next_token: bool
    """Whether the most likely next token is the same at every position."""

    @property
    def passed(self) -> bool:
        """Whether stock loaded every tensor it needs and computes the same function."""
        return (
            not self.seeklet_imported
            and not self.missing_tensors
            and self.same_next_token
            and self.max_logit_difference <= MAX_LOGIT_DIFFERENCE
        )


@torch.inference_mode()
def reload_in_stock(
    model: SeekletForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Path,
    conversations: Sequence[list[dict[str, str]]],
) -> StockReload:
    """Return the comparison on conversations, messages as the tokenizer's chat template takes them.

    Raises:
        ReloadError: the fresh process ended with an error; the message ends with its last line.
    """
    model.eval()
    inputs = _encode(tokenizer, conversations)
    ours = model(**inputs).logits
    with TemporaryDirectory() as scratch:
        sent, received = Path(scratch, "inputs.safetensors"), Path(scratch, "outputs.safetensors")
        save_file(inputs, sent)
        # Read from standard input, so that neither this package's folder nor the caller's is on the import path.
        script = Path(__file__).with_name("stock_process.py").read_text(encoding="utf-8")
        process = subprocess.run(
            [sys.executable, "-", str(checkpoint.resolve()), str(sent), str(received)],
            input=script,
            capture_output=True,
            encoding="utf-8",
            cwd=scratch,
        )
        if process.returncode != 0:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise ReloadError(f"stock transformers could not load {checkpoint}: {last}")
        stock = load_file(received)["logits"]
    loaded = json.loads(process.stdout.strip().splitlines()[-1])
    valid = inputs["attention_mask"].bool()
    ours, stock = ours[valid], stock[valid]
    return StockReload(
        **loaded,
        positions=len(ours),
        max_logit_difference=(ours - stock).abs().max().item(),
        max_logit=ours.abs().max().item(),
        same_next_token=torch.equal(ours.argmax(-1), stock.argmax(-1)),
    )


def _encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[dict[str, str]]]
) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` (B, S), padded on the right."""
    texts = [str(tokenizer.apply_chat_template(each, tokenize=False)) for each in conversations]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
