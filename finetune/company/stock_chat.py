"""Run by its text in a fresh process that never imports seeklet: load a model with stock transformers, and chat.

Usage: python stock_chat.py MODEL_DIR REQUEST.json REPLY.json
The request holds `rows`, held-out conversations as [token ids, mask of the answer], `questions`, the system message and
`max_new_tokens`. The reply says what was loaded, each row's loss summed over its answer, and the chats as messages.
"""

import json
import sys
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, request_file: str, reply_file: str) -> None:
    """Answer the request with the model in `folder`."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    torch.set_num_threads(request["threads"])
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, tensors = loaded
    model.eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    reply = {
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "transformers": transformers.__version__,
        "missing_tensors": sorted(tensors["missing_keys"]),
        "unexpected_tensors": sorted(tensors["unexpected_keys"]),
        "seeklet_imported": any(name.split(".")[0] == "seeklet" for name in sys.modules),
        "losses": [sum_loss(model, *row) for row in request["rows"]],
        "chats": [
            chat(model, tokenizer, request["system"], question, request["max_new_tokens"])
            for question in request["questions"]
        ],
    }
    with open(reply_file, "w", encoding="utf-8") as file:
        json.dump(reply, file)


@torch.inference_mode()
def sum_loss(model: Any, tokens: list[int], mask: list[int]) -> float:
    """Return the cross entropy, in nats, summed over the tokens that the mask marks."""
    ids = torch.tensor(tokens)
    marked = torch.tensor(mask[1:]).bool()
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return cross_entropy(logits[marked].float(), ids[1:][marked], reduction="sum").item()


@torch.inference_mode()
def chat(model: Any, tokenizer: Any, system: str, question: str, max_new_tokens: int) -> list[dict[str, str]]:
    """Return a conversation of one question and the model's greedy answer."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [*messages, {"role": "assistant", "content": answer}]


if __name__ == "__main__":
    main(*sys.argv[1:])
