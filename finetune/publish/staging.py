"""A folder of its own for what is published: weights by link, small files as copies, so that nobody's files change."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from ..errors import AdapterError, PublishError
from ..lora.export import export_per_expert
from ..lora.merge import merge_adapter
from .contents import CODE, list_published
from .findings import Finding, warning
from .private_files import ORIGIN_KEYS
from .source import Source

Form = Literal["merged", "peft", "per-expert"]
_ADAPTER = "adapter"
_SHIM = '''"""Load this model with seeklet (pip install seeklet): multi-token prediction, fused kernels."""

from seeklet.modeling import SeekletConfig, SeekletForCausalLM

__all__ = ["SeekletConfig", "SeekletForCausalLM"]
'''
_AUTO_MAP = {
    "AutoConfig": "modeling_seeklet.SeekletConfig",
    "AutoModelForCausalLM": "modeling_seeklet.SeekletForCausalLM",
}


def stage(source: Source, out: Path, form: Form, with_code: bool = False) -> list[Finding]:
    """Write to `out`, an empty folder, what is published of `source`; return what could not be.

    Of a model: its files, and where a run merged an adapter into it, that per expert in `adapter/`. Of an adapter: the
    same, merged into its base; or as PEFT wrote it; or per expert.

    Raises:
        PublishError: the form is not for such a folder, or the adapter does not go with its base.
        CheckpointError: the base's files are damaged.
        OSError: writing fails.
    """
    found: list[Finding] = []
    if not source.is_adapter or form == "peft":
        link_folder(source.folder, out)
    else:
        _stage_adapter(source, out, form)
    if form == "merged" and source.adapter is not None:
        found = _put_beside(source, source.adapter, out / _ADAPTER)
    for place in (out, out / _ADAPTER):
        if source.base_name and (place / "adapter_config.json").is_file():
            edit_json(place / "adapter_config.json", {"base_model_name_or_path": source.base_name})
    if with_code:
        _add_code(out)
    return found


def link_folder(folder: Path, out: Path) -> None:
    """Give `out` all files of `folder`: weights, and what is never published, by link, others as copies."""
    published = set(list_published(folder, with_code=True))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".git" not in path.relative_to(folder).parts:
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors" or path.relative_to(folder).as_posix() not in published:
                target.symlink_to(path.resolve())
            else:
                shutil.copyfile(path, target)


def edit_json(file: Path, changes: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """Write a JSON file of the staging folder with other values, and without some keys."""
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in values.items() if name not in without}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stage_adapter(source: Source, out: Path, form: Form) -> None:
    base = source.base_folder or source.base
    try:
        if form == "per-expert":
            export_per_expert(source.folder, out, base, overwrite=True)
            return
        merge_adapter(source.folder, out, base, overwrite=True)
    except AdapterError as problem:
        raise PublishError(str(problem)) from None
    for name in ("README.md", "LICENSE", "NOTICE"):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, out / name)


def _put_beside(source: Source, adapter: Path, out: Path) -> list[Finding]:
    """Write `adapter` per expert to `out`, beside the model that holds it; return why not, where it cannot be."""
    left_out = "nothing to do: the merged model holds it"
    if source.base_name is None:
        wrong = "is left out: nothing says what its base is called on the Hub"
        return [warning(f"{_ADAPTER}/", "", wrong, f"name it with --base OWNER/NAME, or {left_out}")]
    try:
        export_per_expert(adapter, out, source.base_folder or source.base)
    except AdapterError as problem:
        shutil.rmtree(out, ignore_errors=True)
        said = str(problem).removeprefix(f"{adapter}: ")
        return [warning(f"{_ADAPTER}/", "", f"is left out: {said}", left_out)]
    # Where the adapter was found is nothing that who loads it needs.
    edit_json(out / "adapter_config.json", {}, ORIGIN_KEYS)
    return []


def _add_code(out: Path) -> None:
    config = out / "config.json"
    if not config.is_file() or json.loads(config.read_text(encoding="utf-8")).get("model_type") != "deepseek_v3":
        raise PublishError("--with-seeklet-code is for models of the DeepSeek-V3 architecture, and this is another")
    (out / CODE).write_text(_SHIM, encoding="utf-8")
    edit_json(config, {"auto_map": _AUTO_MAP})
