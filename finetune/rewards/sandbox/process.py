"""Starting a Python process with a few modules of this package and without the rest, so within milliseconds."""

import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# The packages around a module get their names and folders, but what their __init__ imports is not: torch takes seconds.
_BOOT = """\
import sys, types
from importlib import import_module
from pathlib import Path
package, folder, module = sys.argv[1:4]
del sys.argv[1:4]
folder = Path(folder)
while package:
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(folder)]
    package, folder = package.rpartition(".")[0], folder.parent
import_module(module).main()
"""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main` of a module of this package or the one above, such as `sandbox.inside`.

    The process has no installed packages (`installed_paths` adds them), ignores the environment's settings of Python,
    and finds `arguments` from `sys.argv[1]` on.
    """
    package = __name__.rpartition(".")[0]
    above = package.rpartition(".")[0]
    return [sys.executable, "-I", "-S", "-c", _BOOT, package, str(FOLDER), f"{above}.{module}", *arguments]


def installed_paths() -> list[str]:
    """Return where the installed packages lie."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys((paths["purelib"], paths["platlib"])))


def python_folders() -> list[str]:
    """Return the folders without which Python cannot run."""
    # Where that is all there is, Python's library is among the system's.
    return [folder for folder in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)) if folder != "/"]
