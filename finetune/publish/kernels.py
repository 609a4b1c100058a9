"""The kernel repository of the Hub, put together from `seeklet.modeling.kernels` as it is."""

import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from seeklet.modeling import SeekletError, kernels
from seeklet.modeling.kernels import functional, layers

SOURCE = Path(kernels.__file__).parent
# The repository's layout is that of pure Python and Triton: one build for every version of torch and CUDA.
BACKENDS = {"cuda": {"type": "cuda", "archs": ["8.0+PTX"]}, "cpu": {"type": "cpu"}}
NAME = "seeklet-kernels"
VERSION = 1
LICENSE = "MIT"
# What a repository made here holds, and what a folder that is to be replaced may hold therefore.
HOLDS = {"build", "README.md"}
CARD = """---
library_name: kernels
license: mit
tags:
- kernels
---

# {name}

Fused kernels in Triton for models of the DeepSeek-V3 architecture, made by seeklet. They need a CUDA GPU of compute
capability {major}.{minor} or newer, and triton, which comes with CUDA builds of torch; on other devices every operator
runs its reference in plain PyTorch.

```python
from kernels import get_kernel

kernel = get_kernel("OWNER/{name}", version={version})
y = kernel.functional.rms_norm(x, weight, 1e-6)
```

## Functions

{functions}

## Layers

For `kernels.use_kernel_mapping`, `LayerRepository(repo_id="OWNER/{name}", layer_name=..., version={version})`:

{layers}

## Checked

Forward and every gradient against the reference, in Triton's interpreter; compiled for sm_80, sm_90 and sm_100 without
spilling. Not yet run on a GPU, so nothing is said here about speed.
"""


class KernelRepositoryError(SeekletError, FileExistsError):
    """A kernel repository cannot be written where it was asked for."""


def assemble_kernel_repository(out: Path, name: str = NAME, version: int = VERSION) -> None:
    """Write a kernel repository to `out`, a new or empty folder or one that was written before, which is replaced.

    `kernels.get_local_kernel(out)` and `LocalLayerRepository(out, layer_name=...)` load it, and so does
    `kernels.get_kernel` when the folder is on the Hub. The same sources give the same repository.

    Args:
        out: the folder.
        name: lower-case words joined by dashes, as the Hub asks.
        version: of the kernels, from 1 on; layers name it.

    Raises:
        KernelRepositoryError: `out` is a file, or holds something else.
        ValueError: `name` or `version` is not of that form.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"name is {name!r}; it must be lower-case words joined by dashes, such as {NAME!r}")
    if version < 1:
        raise ValueError(f"version is {version}; it must be 1 or more")
    _check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.saving")
    shutil.rmtree(staging, ignore_errors=True)
    for backend in BACKENDS:
        _write_build(staging / "build" / f"torch-{backend}", backend, name, version)
    (staging / "README.md").write_text(_card(name, version), encoding="utf-8")
    old = out.with_name(f".{out.name}.old")
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise KernelRepositoryError(f"--out {out} is a file; give a folder")
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in HOLDS) if out.exists() else []
    if others:
        raise KernelRepositoryError(f"--out {out} holds other files ({', '.join(others[:3])}); give a new folder")


def _sources() -> Iterator[tuple[Path, bytes]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE), path.read_bytes()


def _write_build(folder: Path, backend: str, name: str, version: int) -> None:
    digest = hashlib.sha256(f"{name} {version} {backend}".encode())
    for relative, content in _sources():
        digest.update(str(relative).encode() + content)
    identity = f"_{name.replace('-', '_')}_{backend}_{digest.hexdigest()[:12]}"
    for relative, content in _sources():
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if relative != Path("_ops.py") else _renamed(content, identity))
    metadata = {
        "id": identity,
        "name": name,
        "version": version,
        "license": LICENSE,
        "python-depends": [],
        "backend": BACKENDS[backend],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def _renamed(content: bytes, namespace: str) -> bytes:
    # Two builds, or a build and seeklet itself, may be loaded in one process: operators are registered once by name.
    text, count = re.subn(r'(?m)^OP_NAMESPACE = ".*"$', f'OP_NAMESPACE = "{namespace}"', content.decode())
    assert count == 1
    return text.encode()


def _card(name: str, version: int) -> str:
    found = [layer for _, layer in inspect.getmembers(layers, inspect.isclass) if layer.__module__ == layers.__name__]
    lists = {
        "functions": _listed(getattr(functional, each) for each in functional.__all__),
        "layers": _listed(found),
    }
    major, minor = divmod(layers.MIN_CAPABILITY, 10)
    return CARD.format(name=name, version=version, major=major, minor=minor, **lists)


def _listed(documented: Iterable[Any]) -> str:
    """Return a line of Markdown for each: its name and the first sentences of its docstring."""
    texts = {each.__name__: (inspect.getdoc(each) or "").partition("\n\n")[0] for each in documented}
    return "\n".join(f"- `{name}`: {' '.join(text.split())}" for name, text in texts.items())
