"""The process that converts or quantizes: llama.cpp's programs, ended together with the process that started them.

Run by its path, so that nothing of seeklet is imported and transformers' own classes read the config:
`python child.py convert OUT SCRIPT ARGUMENTS…` or `python child.py quantize OUT SOURCE TYPE THREADS`.
"""

import importlib
import os
import runpy
import sys
import threading
from typing import Any


def main() -> None:
    """Do what the command line says; standard input is a pipe that ends when the one that waits for it does."""
    job, out, *rest = sys.argv[1:]
    threading.Thread(target=_end_with_parent, args=(out,), daemon=True).start()
    if job == "convert":
        sys.argv = rest
        # As when a script is run by itself: it imports what lies beside it.
        sys.path[0] = os.path.dirname(rest[0])
        runpy.run_path(rest[0], run_name="__main__")
    else:
        source, kind, num_threads = rest
        _quantize(source, out, kind, int(num_threads))


def _end_with_parent(out: str) -> None:
    # Not through sys.stdin, whose lock Python would want for itself at the end.
    os.read(0, 1)
    if os.path.exists(out):
        os.unlink(out)
    os._exit(1)


def _quantize(source: str, out: str, kind: str, num_threads: int) -> None:
    sys.path.pop(0)
    llama_cpp: Any = importlib.import_module("llama_cpp")

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    parameters.nthread = num_threads
    code = llama_cpp.llama_model_quantize(source.encode(), out.encode(), parameters)
    if code:
        sys.exit(f"llama_model_quantize returned {code}")


if __name__ == "__main__":
    main()
