"""Run in a process without seeklet: loads models from the Hub and from folders with stock transformers, and compares.

Arguments: pairs of a name on the Hub and a folder. Prints a line for each: whether the logits are the same bit by bit.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _NoSeeklet(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] == "seeklet":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main() -> None:
    """Compare each pair."""
    sys.meta_path.insert(0, _NoSeeklet())
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.arange(2, 50).unsqueeze(0)
    for name, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        logits = []
        for place in (name, folder):
            model = AutoModelForCausalLM.from_pretrained(place, dtype="auto").eval()
            with torch.inference_mode():
                logits.append(model(ids).logits)
        text = "Where is my order?"
        same_tokens = AutoTokenizer.from_pretrained(name)(text) == AutoTokenizer.from_pretrained(folder)(text)
        is_same = torch.equal(*logits) and same_tokens and bool(torch.isfinite(logits[0]).all())
        print(name, "same" if is_same else "differs", type(model).__name__)
    assert not [module for module in sys.modules if module.partition(".")[0] == "seeklet"]


if __name__ == "__main__":
    main()
