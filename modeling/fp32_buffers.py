"""Modules whose buffers stay fp32 whatever the model is cast to."""

import torch
from torch import nn


class Fp32Buffers(nn.Module):
    """A module that `.to(bf16)`, `.half()`, `.double()` and the like move but do not cast the buffers of."""

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, cast in self._buffers.items():
            old = before[name]
            if old is not None and cast is not None and cast.dtype != torch.float32:
                self._buffers[name] = old.to(device=cast.device, dtype=torch.float32)
        return self
