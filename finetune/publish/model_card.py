"""The card that goes to the Hub: the draft that the run left, with what publishing knows besides.

What seeklet writes stands between two marks; the rest of a card is its owner's, and is kept as it is.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..card import CAPTIONS, TAGS, versions
from ..data.hub_rows import PREFIX, HubName, parse_hub_name
from ..evaluation.reasoning_report import MARKDOWN, STAGES_MARKDOWN, STAGES_PLOT
from .eval_results import find_reports
from .snippets import usage
from .source import Source

BEGIN, END = "<!-- seeklet: begin; what stands up to the end mark is written anew -->", "<!-- seeklet: end -->"
_DRAFT = "<!-- A draft."
# Of the run's draft, what stays true wherever the model is.
_KEPT = ("Results", "Data", "Training")
_LIMITS = (
    "It can be wrong, and say so with confidence; check what matters.",
    "It was measured on what is named above; other subjects, languages and longer texts may go worse.",
    "Whatever its base gets wrong or is biased in, it may, too.",
)
_CAPTIONS = CAPTIONS | {Path(STAGES_PLOT).stem: "Problems solved, length and form after each stage"}
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)\n*")


def write_card(
    folder: Path,
    source: Source,
    repo_id: str,
    licence: str | None,
    hashes: Mapping[str, str],
) -> None:
    """Write `folder/README.md`, keeping what of it is its owner's, and copy the pictures it shows to `folder/plots`.

    Args:
        folder: where the model or adapter to be published is.
        source: where it came from.
        repo_id: what it will be called on the Hub.
        licence: as the Hub names it.
        hashes: sha256 of the weights' files.
    """
    file = folder / "README.md"
    written = file.read_text(encoding="utf-8") if file.is_file() else ""
    draft = source.run.card.read_text(encoding="utf-8") if source.run and source.run.card.is_file() else ""
    section = f"{BEGIN}\n\n" + _section(folder, source, repo_id, draft, hashes) + f"\n\n{END}"
    data = _metadata(folder, source, licence)
    # PEFT and TRL leave templates of cards, with paths of this machine, and so does a run its draft.
    if not written or _is_draft(written):
        body = f"# {repo_id.rpartition('/')[2]}\n\n{section}\n"
    else:
        card = ModelCard(written, ignore_metadata_errors=True)
        data = {**data, **{name: value for name, value in card.data.to_dict().items() if value is not None}}
        if licence is not None:
            data["license"] = licence
        body = _with_section(card.text.lstrip("\n"), section)
    file.write_text(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{body}", encoding="utf-8")


def chosen_licence(folder: Path, asked: str | None, base_licence: str | None) -> str | None:
    """Return the licence of a model: as asked for, as its own card says, or as its base's."""
    if asked is not None:
        return asked
    file = folder / "README.md"
    if file.is_file() and not _is_draft(text := file.read_text(encoding="utf-8")):
        own = ModelCard(text, ignore_metadata_errors=True).data.get("license")
        if isinstance(own, str):
            return own
    return base_licence


def _is_draft(text: str) -> bool:
    return _DRAFT in text or "[More Information Needed]" in text


def _metadata(folder: Path, source: Source, licence: str | None) -> dict[str, Any]:
    is_whole = (folder / "config.json").is_file()
    stage = source.recipe.get("stage", "")
    is_seeklet = '"deepseek_v3"' in (folder / "config.json").read_text(encoding="utf-8") if is_whole else False
    data: dict[str, Any] = {
        "license": licence,
        "language": _language(source),
        "library_name": "transformers" if is_whole else "peft",
        "pipeline_tag": "text-generation",
        "base_model": source.base_name,
        "base_model_relation": ("finetune" if is_whole else "adapter") if source.base_name else None,
        "datasets": _datasets(source.recipe) or None,
        "tags": ["seeklet", *TAGS.get(stage, ()), *(["lora"] if source.is_adapter else [])]
        + (["deepseek_v3"] if is_seeklet else []),
    }
    return {name: value for name, value in data.items() if value is not None}


def _language(source: Source) -> Any:
    card = source.base_folder / "README.md" if source.base_folder else None
    if card is None or not card.is_file():
        return None
    return ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("language")


def _datasets(recipe: Mapping[str, Any]) -> list[str]:
    given = recipe.get("data") or recipe.get("prompts") or {}
    named = given.get("train") or []
    names = [parse_hub_name(name) for name in named if isinstance(name, str) and name.startswith(PREFIX)]
    return [name.path for name in names if isinstance(name, HubName)]


def _section(folder: Path, source: Source, repo_id: str, draft: str, hashes: Mapping[str, str]) -> str:
    kept = sections_of(draft)
    base = source.base_name or ("a model that is not on the Hub" if source.base else None)
    what = "A LoRA adapter for" if not (folder / "config.json").is_file() else "Fine-tuned from"
    parts = [f"{what} {base}." if base else "", "## Use\n\n" + usage(repo_id, source, folder)]
    results = [_PICTURE.sub("", kept.get("Results", "")).strip(), *_evaluations(folder, source)]
    results += [f"![{_CAPTIONS.get(name, name)}](plots/{name}.png)" for name in _copy_pictures(folder, source)]
    if any(results):
        parts.append("## Results\n\n" + "\n\n".join(result for result in results if result))
    parts += [f"## {name}\n\n{kept[name].strip()}" for name in _KEPT[1:] if kept.get(name)]
    parts.append("## Limitations\n\n" + _items(_LIMITS))
    parts.append("## Provenance\n\n" + _provenance(source, hashes))
    return "\n\n".join(part for part in parts if part)


def sections_of(card: str) -> dict[str, str]:
    """Return the text below each heading of the second level; headings within code are none."""
    found: dict[str, list[str]] = {}
    name, in_code = "", False
    for line in card.splitlines():
        in_code = in_code != line.startswith("```")
        if line.startswith("## ") and not in_code:
            name = line[3:].strip()
            found[name] = []
        elif name:
            found[name].append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def _evaluations(folder: Path, source: Source) -> list[str]:
    """Return the tables of the run's evaluation and of the stages of its pipeline; answers are left out."""
    if source.run is None:
        return []
    found = []
    reports = [("Reasoning", folder / MARKDOWN) for folder in find_reports(source)[:1]]
    for title, file in (
        *reports,
        ("Evaluation", source.run.path / "evaluation.md"),
        *(("Stages", folder / STAGES_MARKDOWN) for folder in _with_stages(source)),
    ):
        if file.is_file():
            head = file.read_text(encoding="utf-8").partition("\n## ")[0].partition("\n")[2]
            found.append(f"### {title}\n\n" + _PICTURE.sub("", head).strip())
    return found


def _copy_pictures(folder: Path, source: Source) -> list[str]:
    if source.run is None:
        return []
    there = sorted(source.run.plots.glob("*.png")) if source.run.plots.is_dir() else []
    there += [folder / STAGES_PLOT for folder in _with_stages(source) if (folder / STAGES_PLOT).is_file()]
    for file in there:
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / "plots" / file.name)
    return [file.stem for file in there]


def _with_stages(source: Source) -> list[Path]:
    """Return where the run's model is held against others: what it was before, or the stages of its pipeline."""
    if source.run is None:
        return []
    return [folder for folder in (source.run.path, source.run.path.parent) if (folder / STAGES_MARKDOWN).is_file()][:1]


def _provenance(source: Source, hashes: Mapping[str, str]) -> str:
    lines = [f"`{file}`: sha256 `{digest}`" for file, digest in sorted(hashes.items())]
    if source.base_name:
        at = f" at commit `{source.base_commit}`" if source.base_commit else ""
        lines.append(f"base: {source.base_name}{at}")
    if source.run is None:
        lines.append("published with " + ", ".join(f"{name} {number}" for name, number in versions().items()))
    return _items(lines)


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _with_section(body: str, section: str) -> str:
    begin, end = body.find(BEGIN), body.find(END)
    if 0 <= begin < end:
        return body[:begin] + section + body[end + len(END) :]
    return body.rstrip() + f"\n\n{section}\n"
