"""A dynamic latent cache that grows without copying itself at every token."""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

# Room for so many more tokens is made at once; a quarter of the length where that is more.
GROWTH_TOKENS = 256


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are the front of larger buffers.

    `DynamicLayer` concatenates, which copies the whole cache at every decoded token. Here a token is written behind
    the last one; only when the buffer is full is it replaced by a larger one. While gradients are recorded it
    concatenates all the same, since writing into a tensor that was saved for backward is an error; and while it is
    traced (`torch.compile`, `torch.export`), since tensors have no address then.
    """

    # Not in `vars()`: exporters take everything there for part of the cache, and the buffers' ends are uninitialised.
    __slots__ = ("_buffers",)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Forget any buffer and start empty, on the device and in the dtype of `key_states`."""
        super().lazy_initialization(key_states, value_states)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Return keys and values (B, heads, T, size) with the new tokens (B, heads, S, size) behind the old."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        assert self.keys is not None and self.values is not None
        if self._buffers is None or not self._buffers_hold(self._buffers, old, new):
            room = new + max(GROWTH_TOKENS, new // 4)
            self._buffers = (_grown(key_states, self.keys, old, room), _grown(value_states, self.values, old, room))
        key_buffer, value_buffer = self._buffers
        key_buffer[..., old:new, :], value_buffer[..., old:new, :] = key_states, value_states
        self.keys, self.values = key_buffer[..., :new, :], value_buffer[..., :new, :]
        return self.keys, self.values

    def _buffers_hold(self, buffers: tuple[torch.Tensor, torch.Tensor], old: int, new: int) -> bool:
        # Beam reordering and the like put other tensors in our views' place: then the buffers are stale.
        assert self.keys is not None and self.values is not None
        # Outside inference mode, what was made inside must not be written to.
        writable = torch.is_inference_mode_enabled() or not buffers[0].is_inference()
        return (
            old > 0
            and writable
            and all(
                held.data_ptr() == buffer.data_ptr()
                and held.stride() == buffer.stride()
                and held.shape[:-2] == buffer.shape[:-2]
                and new <= buffer.shape[-2]
                for held, buffer in zip((self.keys, self.values), buffers, strict=True)
            )
        )


def _grown(added: torch.Tensor, held: torch.Tensor, old: int, room: int) -> torch.Tensor:
    buffer = added.new_empty((*added.shape[:-2], room, added.shape[-1]))
    if old:
        buffer[..., :old, :] = held
    return buffer


class LatentCache(DynamicCache):
    """A `DynamicCache` of `GrowingLayer`s: per layer the latents (B, 1, T, L) and rope keys (B, 1, T, R)."""

    def __init__(self, num_layers: int = 0):
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer
        self.layers = [GrowingLayer() for _ in range(num_layers)]
