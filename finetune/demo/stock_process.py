"""Run by file name in a fresh process that never imports seeklet: load a checkpoint with stock transformers only.

Usage: python stock_process.py CHECKPOINT_DIR INPUTS.safetensors OUTPUTS.safetensors
INPUTS holds `input_ids` and `attention_mask` (B, S), OUTPUTS will hold `logits` (B, S, vocabulary). What was loaded is
printed as one line of JSON.
"""

import json
import sys
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main(checkpoint: str, inputs_file: str, outputs_file: str) -> None:
    """Write the checkpoint's logits for the inputs, and print the class that computed them."""
    torch.set_num_threads(1)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, tensors = loaded
    inputs = load_file(inputs_file)
    with torch.inference_mode():
        logits = model.eval()(**inputs).logits
    save_file({"logits": logits.contiguous()}, outputs_file)
    facts = {
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "transformers": transformers.__version__,
        "missing_tensors": sorted(tensors["missing_keys"]),
        "unexpected_tensors": sorted(tensors["unexpected_keys"]),
        "seeklet_imported": any(name.split(".")[0] == "seeklet" for name in sys.modules),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
