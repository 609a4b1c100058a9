"""The pre-flight: everything that is wrong with what is about to be published, found at once."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .adapter_check import check_adapter
from .answer_check import check_answer
from .contents import check_contents, list_published
from .engine_keys import check_keys
from .findings import Finding, error, errors_of
from .licences import check_licence
from .model_fit import build_on_meta, check_fit
from .private_files import check_private
from .served_with import check_generation_config, check_tokenizer, load_tokenizer
from .shards import Shards, read_shards
from .weight_pass import pass_over


@dataclass(frozen=True)
class Checks:
    """What the pre-flight goes by.

    Attributes:
        base: the folder of the base model, where it is on this machine.
        base_name: the base's name on the Hub.
        base_licence: as the Hub names it.
        licence: that of the model.
        public: whether everybody will see it.
        with_code: whether the shim that imports seeklet goes along.
        answer: whether the model is loaded and asked something, beyond the one pass over its weights.
        is_trained: whether the weights must differ from the base's.
    """

    base: Path | None = None
    base_name: str | None = None
    base_licence: str | None = None
    licence: str | None = None
    public: bool = False
    with_code: bool = False
    answer: bool = True
    is_trained: bool = True


@dataclass
class Report:
    """What the pre-flight says.

    Attributes:
        files: what would be published, relative to the folder.
        findings: errors first.
        hashes: sha256 of the weights' files.
        num_bytes: of the weights.
        num_read: bytes of them that were read, the answer left out.
    """

    files: list[str]
    findings: list[Finding] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    num_read: int = 0

    @property
    def is_fit(self) -> bool:
        """Whether nothing stands against publishing."""
        return not errors_of(self.findings)


def inspect(folder: Path, checks: Checks, advance: Callable[[int], None] = lambda _: None) -> Report:
    """Return all that is wrong with the model or adapter in `folder`; `advance` is told of bytes that were read.

    Raises:
        OSError: the folder cannot be read.
    """
    report = Report(list_published(folder, checks.with_code), check_contents(folder, checks.with_code))
    report.findings += check_private(folder, report.files)
    report.findings += check_licence(checks.licence, checks.base_name, checks.base_licence, checks.public)
    if (folder / "config.json").is_file():
        _inspect_model(folder, checks, report, advance)
    for place, prefix in ((folder, ""), (folder / "adapter", "adapter/")):
        if (place / "adapter_config.json").is_file():
            report.findings += check_adapter(place, prefix)
    report.findings = sorted(
        dict.fromkeys(report.findings), key=lambda finding: (finding.level != "error", finding.file)
    )
    return report


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: there is no such thing in it.
    """
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, not an object")
    return value


def _inspect_model(folder: Path, checks: Checks, report: Report, advance: Callable[[int], None]) -> None:
    found = report.findings
    try:
        config = read_json(folder / "config.json")
    except ValueError as problem:
        found.append(error("config.json", "", f"is no JSON of a config: {problem}", "copy it anew"))
        return
    shards = read_shards(folder)
    found += shards.findings
    found += check_keys(config, shards, checks.with_code)
    model, problems = build_on_meta(folder)
    found += problems
    # What a broken header holds would only be missing once more.
    if model is not None and shards.tensors and not shards.findings:
        found += check_fit(model, shards)
    _read_weights(shards, checks, report, advance)
    found += check_generation_config(folder, config)
    tokenizer, problems = load_tokenizer(folder)
    found += problems
    if tokenizer is not None:
        found += check_tokenizer(tokenizer, config, shards)
    if checks.answer and tokenizer is not None and model is not None and report.is_fit:
        found += check_answer(folder, tokenizer, report.num_bytes)


def _read_weights(shards: Shards, checks: Checks, report: Report, advance: Callable[[int], None]) -> None:
    base = read_shards(checks.base) if checks.base is not None and checks.is_trained else None
    facts = pass_over(shards, base if base is not None and base.tensors else None, advance)
    report.hashes, report.num_read = facts.hashes, facts.num_read
    report.num_bytes = sum(file.stat().st_size for file in shards.files)
    report.findings += facts.findings
    if facts.changed is False:
        name = next(iter(shards.tensors))
        wrong = f"is the base's, bit for bit, and so are all {len(shards.tensors):,} tensors: nothing was trained"
        mend = "merge the adapter first (seeklet merge), or name the folder of the trained model"
        report.findings.append(error(Path(shards.tensors[name].file).name, name, wrong, mend))
