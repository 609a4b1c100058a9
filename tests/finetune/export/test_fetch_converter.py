"""Of the source package only the converter is kept, and it is there whole or not at all."""

import io
import tarfile
from pathlib import Path

import pytest

from seeklet.finetune.export import fetch_converter as module
from seeklet.finetune.export.converter_source import Converter


def pack(place: Path, files: dict[str, bytes]) -> Path:
    archive = place / "package.tar.gz"
    with tarfile.open(archive, "w:gz") as held:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            held.addfile(member, io.BytesIO(content))
    return archive


def source_package(converter: Converter) -> dict[str, bytes]:
    root = converter.script.parent
    files = [converter.script, root / "conversion" / "__init__.py", root / "conversion" / "base.py"]
    return {module._WITHIN + str(file.relative_to(root)): file.read_bytes() for file in files}


def test_only_the_converter_is_kept(converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "assets" / "converter"
    files = source_package(converter) | {
        module._WITHIN + "gguf-py/gguf/__init__.py": b"",
        module._WITHIN + "gguf-py/tests/test.py": b"",
        module._WITHIN + "ggml/src/ggml.c": b"",
        "llama_cpp_python-0.3.36/CMakeLists.txt": b"",
    }
    monkeypatch.setattr(module, "_cache", lambda: cache)
    monkeypatch.setattr(module, "_download", lambda place: pack(place, files))
    assert module.cached_converter() is None
    fetched = module.fetch_converter()
    kept = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    assert kept == {"convert_hf_to_gguf.py", "conversion/__init__.py", "conversion/base.py", "gguf-py/gguf/__init__.py"}
    assert fetched.script == cache / "convert_hf_to_gguf.py"
    assert fetched.architectures == converter.architectures
    assert [path.name for path in cache.parent.iterdir()] == ["converter"]

    monkeypatch.setattr(module, "_download", lambda place: pytest.fail("it is there"))
    assert module.fetch_converter() == fetched


def test_a_package_that_reaches_outside_is_refused(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "assets" / "converter"
    files = source_package(converter) | {module._WITHIN + "conversion/../../../../../../evil": b""}
    monkeypatch.setattr(module, "_cache", lambda: cache)
    monkeypatch.setattr(module, "_download", lambda place: pack(place, files))
    with pytest.raises(tarfile.FilterError):
        module.fetch_converter()
    assert list(cache.parent.iterdir()) == []
    assert not (tmp_path / "evil").exists()
