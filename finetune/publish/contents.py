"""Which files of a folder are published: those on a list, and nothing else, so that nothing slips in."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from .findings import Finding, error, warning

# What a model is on the Hub; paths relative to its folder.
ALLOWED = (
    *("config.json", "generation_config.json", "README.md", "LICENSE*", "NOTICE*", "recipe.yaml", "recipes/*.yaml"),
    *("model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("adapter_config.json", "adapter_model.safetensors", "router_bias.safetensors"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *("plots/*.png", ".eval_results/*.yaml"),
)
# Of `--with-seeklet-code`.
CODE = "modeling_seeklet.py"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy")
_KINDS = (
    (_PICKLES, "a pickle, which can run code where it is loaded"),
    (("trainer_state.json", "training_args*", "*optimizer*", "*scheduler*", "rng_state*"), "a state of training"),
    (("*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.arrow"), "data"),
    (("*.log", "events.out.tfevents.*", "wandb/*", "*.out", "*.err"), "a log"),
    (("*.py", "*.sh"), "code"),
    ((".env*", "*.pem", "*.key", "*id_rsa*", "*credentials*", ".netrc"), "a place for secrets"),
)


def list_published(folder: Path, with_code: bool = False) -> list[str]:
    """Return the paths, relative to `folder`, of the files that are published."""
    return [name for name in _files(folder) if _is_allowed(name, with_code)]


def check_contents(folder: Path, with_code: bool = False) -> list[Finding]:
    """Return what is left out, and whether there is a model at all."""
    names = list(_files(folder))
    found = [
        warning(name, "", f"is {_kind(name)} and is not published", "nothing to do, unless it is needed")
        for name in names
        if not _is_allowed(name, with_code) and not _is_hidden(name)
    ]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if _matches(name, _PICKLES)]
        where = pickles[0] if pickles else "model.safetensors"
        wrong = "are weights as a pickle, which can run code" if pickles else "there are no weights in this folder"
        found.append(error(where, "", wrong, "save the model with save_pretrained, which writes safetensors"))
    if not {"config.json", "adapter_config.json"} & set(names):
        found.append(
            error("config.json", "", "is missing", "name the folder that save_pretrained or seeklet merge wrote")
        )
    return found


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".git" not in path.parts:
            yield path.relative_to(folder).as_posix()


def _is_allowed(name: str, with_code: bool) -> bool:
    return _matches(name, ALLOWED) or (with_code and name == CODE)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    # A star must not reach into folders that the list does not name.
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _is_hidden(name: str) -> bool:
    return name.startswith((".cache/", ".gitattributes", ".gitignore")) or "/.saving" in name


def _kind(name: str) -> str:
    base = name.rpartition("/")[2]
    for patterns, kind in _KINDS:
        if any(fnmatch(base, pattern) or fnmatch(name, pattern) for pattern in patterns):
            return kind
    return "on no list of what a model needs"
