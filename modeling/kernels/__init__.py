"""Fused layers and their references: one folder an operator, importing only torch and triton.

Every operator has a `reference.py` in plain PyTorch: it is the specification, the CPU path and the test
oracle in one. The package imports nothing else of seeklet, so that it can be published as a kernel
repository unchanged.
"""

from . import functional, layers

__all__ = ["functional", "layers"]
