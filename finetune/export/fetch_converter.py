"""llama.cpp's converter, out of the source package of llama-cpp-python: fetched by pip, checked, kept, never built.

No wheel that anybody vouches for holds it. `python -m seeklet.finetune.export.fetch_converter` fetches it beforehand.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from huggingface_hub import cached_assets_path

from ..errors import ExportError
from .converter_source import SCRIPT, Converter, read_converter

# The version that the tests of export run with; the hash is PyPI's, and pip refuses any other file.
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SIZE_MB = 77
_WITHIN = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
_KEPT = (SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/")


def cached_converter() -> Converter | None:
    """Return the converter that was fetched before, or None."""
    folder = _cache()
    return read_converter(folder) if (folder / SCRIPT).is_file() else None


def fetch_converter() -> Converter:
    """Return the converter, fetched if it is not here yet: pip downloads the source package, 2 MB of which are kept.

    Raises:
        ExportError: pip could not download it.
        OSError: it cannot be written.
    """
    found = cached_converter()
    if found is not None:
        return found
    folder = _cache()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as place:
        archive = _download(Path(place))
        unpacked = Path(place, "unpacked")
        with tarfile.open(archive) as held:
            members = [member for member in held if member.name.removeprefix(_WITHIN).startswith(_KEPT)]
            held.extractall(unpacked, members=members, filter="data")
        # In one step, so that a killed run leaves no half converter; another run may have been quicker.
        shutil.rmtree(folder, ignore_errors=True)
        (unpacked / _WITHIN).rename(folder)
    return read_converter(folder)


def _cache() -> Path:
    # A folder that is there is whole: huggingface_hub makes only the one above it.
    return cached_assets_path("seeklet", namespace="gguf") / f"llama-cpp-python-{VERSION}"


def _download(place: Path) -> Path:
    wanted = place / "wanted.txt"
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes"]
    command += ["--no-binary", "llama-cpp-python", "--requirement", str(wanted), "--dest", str(place)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    archives = list(place.glob("*.tar.gz"))
    if done.returncode or not archives:
        lines = (
            [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["no reason"]
        )
        raise ExportError(
            f"llama.cpp's converter could not be fetched with pip (llama-cpp-python {VERSION}, {SIZE_MB} MB): "
            f"{lines[-1].strip()}; without a network, name a checkout of llama.cpp: --converter FOLDER"
        )
    return archives[0]


if __name__ == "__main__":
    try:
        print(fetch_converter().script)
    except ExportError as problem:
        sys.exit(str(problem))
