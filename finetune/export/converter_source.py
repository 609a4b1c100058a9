"""What llama.cpp's converter can do, read from its source, which is not run for it."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import ExportError

SCRIPT = "convert_hf_to_gguf.py"
_HASH = re.compile(r"chkhsh == \"([0-9a-f]{64})\"")
_METHOD = re.compile(r"quant_method == \"([\w-]+)\"")


@dataclass(frozen=True)
class Converter:
    """A converter of llama.cpp.

    Attributes:
        script: what is run.
        architectures: those it knows, as in a config's `architectures`.
        types: what `--outtype` takes, `auto` left out.
        probe: the text by whose tokens it tells byte-level tokenizers apart.
        known_hashes: sha256 of the tokens of those that llama.cpp has rules for.
        quantizations: values of `quant_method` in a config that it can expand.
    """

    script: Path
    architectures: frozenset[str]
    types: tuple[str, ...]
    probe: str
    known_hashes: frozenset[str]
    quantizations: frozenset[str]


@cache
def read_converter(folder: Path) -> Converter:
    """Return what the converter in `folder` can do: a checkout of llama.cpp, or the script itself.

    Raises:
        ExportError: there is none, or it is of a time when it was arranged otherwise.
    """
    script = folder if folder.is_file() else folder / SCRIPT
    package = script.parent / "conversion"
    if not script.is_file():
        raise ExportError(f"{folder}: holds no {SCRIPT}; name a checkout of llama.cpp")
    try:
        architectures = _text_models(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
        types = _out_types(ast.parse(script.read_text(encoding="utf-8")))
        source = (package / "base.py").read_text(encoding="utf-8")
        probe, hashes = _probe(ast.parse(source)), frozenset(_HASH.findall(source))
    except (OSError, SyntaxError, StopIteration, ValueError):
        source, architectures, types, probe, hashes = "", frozenset(), (), "", frozenset()
    if not (architectures and types and probe and hashes):
        raise ExportError(
            f"{script}: is another version of llama.cpp than seeklet knows; leave --converter out to take the one it "
            "is tested with"
        )
    return Converter(script, architectures, types, probe, hashes, frozenset(_METHOD.findall(source)))


def _text_models(module: ast.Module) -> frozenset[str]:
    """Return the keys of `TEXT_MODEL_MAP: dict[str, str] = {…}`."""
    assigned = next(
        node.value
        for node in module.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "TEXT_MODEL_MAP"
    )
    return frozenset(ast.literal_eval(assigned)) if assigned is not None else frozenset()


def _out_types(module: ast.Module) -> tuple[str, ...]:
    """Return the choices of `add_argument("--outtype", choices=[…])`."""
    call = next(
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and any(isinstance(argument, ast.Constant) and argument.value == "--outtype" for argument in node.args)
    )
    choices = next(keyword.value for keyword in call.keywords if keyword.arg == "choices")
    return tuple(name for name in ast.literal_eval(choices) if name != "auto")


def _probe(module: ast.Module) -> str:
    """Return what is assigned to `chktxt`."""
    return ast.literal_eval(
        next(
            node.value
            for node in ast.walk(module)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "chktxt"
        )
    )
