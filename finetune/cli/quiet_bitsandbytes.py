"""bitsandbytes without the Hub, and only where it is used.

PEFT imports it wherever it is installed, as does everything that imports PEFT: TRL's configs, by which recipes are
read, too. And as it comes, its import asks the Hub for a kernel on a CPU with AVX512-BF16, and warns: every command
would take a second more, and half a minute where a network swallows what is sent. Without that kernel it uses its own.
"""

import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import LazyLoader
from types import ModuleType


class _WithoutKernels(SourceFileLoader):
    """Carries a module out while the library `kernels` cannot be imported."""

    def exec_module(self, module: ModuleType) -> None:
        found = sys.modules.get("kernels")
        sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType] (how Python is told of what is not there)
        try:
            super().exec_module(module)
        finally:
            del sys.modules["kernels"]
            if found is not None:
                sys.modules["kernels"] = found


class _Finder(MetaPathFinder):
    """Finds bitsandbytes, to be carried out like that at the first look at what is in it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "bitsandbytes" else None
        if spec is not None and spec.origin is not None:
            spec.loader = LazyLoader(_WithoutKernels(fullname, spec.origin))
        return spec


def keep_bitsandbytes_quiet() -> None:
    """Let this process import bitsandbytes when it is used, without asking the Hub and without a warning of that."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    sys.meta_path.insert(0, _Finder())
