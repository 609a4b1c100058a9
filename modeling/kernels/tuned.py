"""Tilings that were measured fastest, by kernel and chip; written by `python -m benchmarks.kernels.tune` on a GPU.

None yet: not yet run on a GPU. Where there is none, a kernel takes the tiling that its `kernel.py` has for the chip.
"""

TUNED: dict[str, dict[str, int]] = {}


def tuned(kernel: str, capability: int) -> dict[str, int]:
    """Return the tiling in half precision of a kernel such as "mla_attention.forward"; empty where none is measured."""
    return dict(TUNED.get(f"{kernel}/sm_{capability}", {}))
