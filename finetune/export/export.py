"""A model as GGUF: checked, converted, looked over, and only then called by its name."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ..atomic_files import replaced_file, write_text
from ..checkpoints import remove_unfinished
from ..errors import ExportError
from ..publish.findings import Finding, error, errors_of
from ..publish.mend import mend
from ..publish.source import Source, find_source
from ..publish.staging import link_folder
from .checks import Plan, make_plan
from .convert import convert, quantize
from .converter_source import Converter, read_converter
from .fetch_converter import SIZE_MB, VERSION, cached_converter, fetch_converter
from .gguf_file import adds_beginning, check_whole
from .modelfile import licence_in, sampling_of, stops_of, write_modelfile
from .own_files import record_file
from .weight_types import ALLOWED, BYTES, QUANTIZED

_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        types: what weights are written as, a file for each.
        out: where the files go; default: beside the model, its name with -gguf.
        name: what the files are called; default: after the folder.
        ollama: write a Modelfile, too.
        system: the system message in it; default: the one the chat template has of itself.
        fix: mend what is safe, in a copy.
        overwrite: replace files that no export wrote, or that were changed since.
        converter: a checkout of llama.cpp, in place of what is fetched.
    """

    types: Sequence[str] = ("q8_0",)
    out: Path | None = None
    name: str | None = None
    ollama: bool = False
    system: str | None = None
    fix: bool = False
    overwrite: bool = False
    converter: Path | None = None


@dataclass
class Outcome:
    """What was found and written.

    Attributes:
        findings: after what was mended.
        mended: what `fix` did.
        sizes: bytes of each file, estimated, by its path.
        written: the files; empty after a dry run, or where something stands against it.
    """

    findings: list[Finding]
    mended: list[Finding] = field(default_factory=list)
    sizes: dict[Path, int] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)


def export(
    folder: Path,
    options: ExportOptions,
    console: Console,
    *,
    dry_run: bool = False,
    show: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Return what came of writing the model in `folder` as GGUF; `show` is given it before anything is written.

    The folder itself is never changed. Each file is there whole or not at all.

    Raises:
        PublishError: there is no model in the folder.
        ExportError: a type is not offered, or llama.cpp gave up.
        OSError: the disk is full, or a file cannot be read.
    """
    _check_options(options)
    source = find_source(folder)
    if source.is_adapter:
        outcome = Outcome([_not_merged(source.folder)])
        show(outcome)
        return outcome
    files = _name_files(source, options)
    converter, missing = _find_converter(options.converter, console)
    with tempfile.TemporaryDirectory(prefix="seeklet-export-") as place:
        model = source.folder
        plan, mended = _plan(model, files, options, converter), []
        if options.fix and any(finding.fixable for finding in plan.findings):
            model = Path(place)
            link_folder(source.folder, model)
            mended = mend(model, plan.findings)
            plan = _plan(model, files, options, converter)
        sizes = {files.weights[kind]: size for kind, size in plan.sizes.items()}
        outcome = Outcome([*missing, *plan.findings], mended, sizes)
        show(outcome)
        if dry_run or errors_of(outcome.findings) or converter is None:
            return outcome
        files.out.mkdir(parents=True, exist_ok=True)
        remove_unfinished(files.out)
        for file in _write_all(model, files, plan, converter, options.system, console):
            record_file(file)
            outcome.written.append(file)
    return outcome


@dataclass(frozen=True)
class _Files:
    """Where what is written goes: a file of weights for each type, and Modelfiles where they were asked for."""

    out: Path
    name: str
    weights: dict[str, Path]
    modelfiles: dict[str, Path]


def _check_options(options: ExportOptions) -> None:
    for kind in options.types:
        if kind not in BYTES:
            raise ExportError(f"--gguf {kind}: there is no such type; allowed: {ALLOWED}")
    if options.name is not None and not _NAME.fullmatch(options.name):
        raise ExportError(f"--name {options.name}: allowed are letters, digits, and - _ . between them")


def _not_merged(adapter: Path) -> Finding:
    command = f"seeklet merge {adapter} --out {adapter.with_name('merged')}"
    return error(str(adapter), "", "is an adapter, and a GGUF file holds a whole model", f"merge it first: {command}")


def _name_files(source: Source, options: ExportOptions) -> _Files:
    folder, types = source.folder.resolve(), list(dict.fromkeys(options.types))
    out = options.out or folder.with_name(f"{folder.name}-gguf")
    # What a run leaves is called merged; what else a folder is in, as a home, is nobody's business.
    is_in_run = source.run is not None and source.run.path.resolve() != folder
    name = options.name or (folder.parent if is_in_run else folder).name
    weights = {kind: out / f"{name}-{kind}.gguf" for kind in types}
    modelfiles: dict[str, Path] = {}
    if options.ollama:
        # One alone has the name that Ollama looks for.
        modelfiles = {kind: out / ("Modelfile" if len(types) == 1 else f"Modelfile-{kind}") for kind in types}
    return _Files(out, name, weights, modelfiles)


def _plan(model: Path, files: _Files, options: ExportOptions, converter: Converter | None) -> Plan:
    return make_plan(
        model,
        list(files.weights),
        converter,
        files.out,
        [path.name for path in (*files.weights.values(), *files.modelfiles.values())],
        ollama=options.ollama,
        system=options.system,
        overwrite=options.overwrite,
    )


def _find_converter(given: Path | None, console: Console) -> tuple[Converter | None, list[Finding]]:
    if given is not None:
        return read_converter(given.expanduser()), []
    found = cached_converter()
    if found is None:
        console.print(f"Fetching llama.cpp's converter once: {SIZE_MB} MB, llama-cpp-python {VERSION} from PyPI.")
        try:
            found = fetch_converter()
        except ExportError as problem:
            said, _, remedy = str(problem).rpartition("; ")
            return None, [error("llama.cpp", "", said, remedy)]
    return found, []


def _write_all(
    model: Path, files: _Files, plan: Plan, converter: Converter, system: str | None, console: Console
) -> Iterator[Path]:
    """Write each file and give its path, Modelfiles last: they say what only the weights' file knows."""
    yield from _write_weights(model, files.weights, plan, converter, files.name, console)
    for kind, file in files.modelfiles.items():
        _write_modelfile(file, files.weights[kind], model, plan, system)
        yield file


def _write_weights(
    model: Path, files: dict[str, Path], plan: Plan, converter: Converter, name: str, console: Console
) -> Iterator[Path]:
    """Write each file and give its path; those that llama.cpp quantizes come last, from one that lost nothing."""
    for kind, file in files.items():
        if kind not in QUANTIZED:
            with _checked_file(file) as beside:
                convert(converter, model, kind, name, beside, plan.sizes[kind], console)
            yield file
    quantized = {kind: file for kind, file in files.items() if kind in QUANTIZED}
    if not quantized:
        return
    with _lossless_file(model, files, plan, converter, name, console) as whole:
        for kind, file in quantized.items():
            with _checked_file(file) as beside:
                quantize(whole, kind, beside, plan.sizes[kind], console)
            yield file


@contextmanager
def _checked_file(file: Path) -> Iterator[Path]:
    with replaced_file(file) as beside:
        yield beside
        check_whole(beside)


@contextmanager
def _lossless_file(
    model: Path, files: dict[str, Path], plan: Plan, converter: Converter, name: str, console: Console
) -> Iterator[Path]:
    if plan.lossless in files:
        yield files[plan.lossless]
        return
    out = next(iter(files.values())).parent
    # Called as what an export that is killed leaves, so that the next one removes it.
    with tempfile.TemporaryDirectory(prefix=f".{name}.saving-", dir=out) as place:
        whole = Path(place, f"{name}-{plan.lossless}.gguf")
        size = next(round(plan.sizes[kind] / BYTES[kind] * BYTES[plan.lossless]) for kind in files)
        convert(converter, model, plan.lossless, name, whole, size, console)
        yield whole


def _write_modelfile(file: Path, weights: Path, model: Path, plan: Plan, system: str | None) -> None:
    assert plan.template is not None and plan.tokenizer is not None
    begins_with = "" if adds_beginning(weights) else plan.template.begins_with
    text = write_modelfile(
        weights.name,
        plan.template,
        begins_with=begins_with,
        system=plan.template.system if system is None else system,
        sampling=sampling_of(model),
        stops=stops_of(model, plan.tokenizer, plan.template),
        licence=licence_in(model),
    )
    write_text(file, text)
