"""A cache whose last slots are written again at every step: rejected drafts are overwritten, never masked out."""

# B rows, S slots of a window, T keys, W columns

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .cache import GROWTH_TOKENS


@dataclass(slots=True)
class Window:
    """Some slots in a row, per row of the batch, that one forward pass fills; slot i holds token i of the sequence.

    `slots` is a slice where all rows stand at the same place, else row numbers (B, 1) and slots (B, S); behind `stop`
    nothing is visible to any of them; `mask` and `position_ids` are what the layers are given.
    """

    slots: slice | tuple[torch.Tensor, torch.Tensor]
    stop: int
    mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None

    def write(self, buffer: torch.Tensor, states: torch.Tensor, first_slot: int) -> None:
        """Write `states` (B, 1, S, size) into `buffer` (B, 1, room, size), which starts at slot `first_slot`."""
        if isinstance(self.slots, slice):
            start = self.slots.start - first_slot
            buffer[:, :, start : start + states.shape[-2]] = states
        else:
            rows, slots = (index.to(buffer.device) for index in self.slots)
            buffer[:, 0][rows, slots - first_slot if first_slot else slots] = states[:, 0]


class Cursor(Protocol):
    """Where each row stands: at slot `start` of its last accepted token when a step begins, from there on at drafts.

    `num_kept` of those turn out right, per row; what follows them is found by `pick` and `place`.
    """

    def move(self, starts: list[int]) -> None:
        """Set the slot that each row's step begins at."""
        ...

    def keep(self, num_kept: list[int]) -> None:
        """Set how many drafts each row keeps."""
        ...

    def window(self, shift: int, width: int, first_slot: int = 0) -> Window:
        """Return the slots start + shift ... start + shift + width - 1 of each row, for keys from `first_slot` on."""
        ...

    def read(self, tokens: torch.Tensor, shift: int, width: int) -> torch.Tensor:
        """Return columns start + shift ... start + shift + width - 1 of `tokens` (B, W)."""
        ...

    def write(self, tokens: torch.Tensor, shift: int, values: torch.Tensor) -> None:
        """Write `values` (B, S) into `tokens` (B, W) from column start + shift on."""
        ...

    def place(self, tokens: torch.Tensor, shift: int, values: torch.Tensor) -> None:
        """Write `values` (B, 1) into column start + num_kept + shift of `tokens` (B, W)."""
        ...

    def pick(self, states: torch.Tensor, shift: int) -> torch.Tensor:
        """Return position num_kept + shift of `states` (B, S, size): (B, 1, size)."""
        ...


class AlignedCursor:
    """The cursor of a single row without padding: windows are slices, and nothing is computed for them."""

    def __init__(self, offset: torch.Tensor, num_slots: int, widest: int, additive: torch.dtype | None):
        """Prepare positions slot + `offset` (1, 1) and the masks of windows up to `widest` for `num_slots` slots."""
        columns = torch.arange(num_slots + widest, device=offset.device)
        # Query j of a window at `start` sees the keys up to start + j: the same triangle, cut out further left.
        self._triangle = _as_mask(columns <= num_slots + columns[:widest, None], additive)[None, None]
        self._positions = offset + columns
        self._num_slots = num_slots
        self._start = self._num_kept = 0

    def move(self, starts: list[int]) -> None:
        """Set the slot that the row's step begins at."""
        self._start = starts[0]

    def keep(self, num_kept: list[int]) -> None:
        """Set how many drafts the row keeps."""
        self._num_kept = num_kept[0]

    def window(self, shift: int, width: int, first_slot: int = 0) -> Window:
        """Return the slots start + shift ... start + shift + width - 1, for keys from `first_slot` on."""
        start = self._start + shift
        stop = start + width
        mask = self._triangle[:, :, :width, self._num_slots - start + first_slot : self._num_slots + width]
        return Window(slice(start, stop), stop, mask, self._positions[:, start:stop])

    def read(self, tokens: torch.Tensor, shift: int, width: int) -> torch.Tensor:
        """Return columns start + shift ... start + shift + width - 1 of `tokens` (1, W)."""
        return tokens[:, self._start + shift : self._start + shift + width]

    def write(self, tokens: torch.Tensor, shift: int, values: torch.Tensor) -> None:
        """Write `values` (1, S) into `tokens` (1, W) from column start + shift on."""
        tokens[:, self._start + shift : self._start + shift + values.shape[1]] = values

    def place(self, tokens: torch.Tensor, shift: int, values: torch.Tensor) -> None:
        """Write `values` (1, 1) into column start + num_kept + shift of `tokens` (1, W)."""
        self.write(tokens, self._num_kept + shift, values)

    def pick(self, states: torch.Tensor, shift: int) -> torch.Tensor:
        """Return position num_kept + shift of `states` (1, S, size): (1, 1, size)."""
        index = self._num_kept + shift
        return states[:, index : index + 1]


class RaggedCursor:
    """The cursor of rows that stand at different slots, or have padding."""

    def __init__(self, offset: torch.Tensor, valid: torch.Tensor | None, additive: torch.dtype | None):
        """Take positions slot + `offset` (B, 1), and `valid` (B, number of slots), False for padding."""
        self._offset = offset
        self._valid = None if valid is None else valid[:, None, None, :]
        self._additive = additive
        self._rows = torch.arange(len(offset), device=offset.device)[:, None]
        self._starts = self._num_kept = torch.zeros_like(offset)
        self._largest = 0

    def move(self, starts: list[int]) -> None:
        """Set the slot that each row's step begins at."""
        self._starts = torch.tensor(starts, device=self._offset.device)[:, None]
        self._largest = max(starts)

    def keep(self, num_kept: list[int]) -> None:
        """Set how many drafts each row keeps."""
        self._num_kept = torch.tensor(num_kept, device=self._offset.device)[:, None]

    def window(self, shift: int, width: int, first_slot: int = 0) -> Window:
        """Return the slots start + shift ... start + shift + width - 1 of each row, for keys from `first_slot` on."""
        slots = self._columns(shift, width)
        stop = self._largest + shift + width
        visible = torch.arange(first_slot, stop, device=slots.device) <= slots[:, None, :, None]
        if self._valid is not None:
            visible = visible & self._valid[..., first_slot:stop]
        return Window((self._rows, slots), stop, _as_mask(visible, self._additive), slots + self._offset)

    def read(self, tokens: torch.Tensor, shift: int, width: int) -> torch.Tensor:
        """Return columns start + shift ... start + shift + width - 1 of each row of `tokens` (B, W)."""
        return tokens.gather(1, self._columns(shift, width))

    def write(self, tokens: torch.Tensor, shift: int, values: torch.Tensor) -> None:
        """Write `values` (B, S) into `tokens` (B, W) from each row's column start + shift on."""
        tokens.scatter_(1, self._columns(shift, values.shape[1]), values)

    def place(self, tokens: torch.Tensor, shift: int, values: torch.Tensor) -> None:
        """Write `values` (B, 1) into column start + num_kept + shift of each row of `tokens` (B, W)."""
        tokens.scatter_(1, self._starts + self._num_kept + shift, values)

    def pick(self, states: torch.Tensor, shift: int) -> torch.Tensor:
        """Return position num_kept + shift of each row of `states` (B, S, size): (B, 1, size)."""
        index = (self._num_kept + shift)[..., None].to(states.device)
        return states.gather(1, index.expand(-1, -1, states.shape[-1]))

    def select(self, rows: torch.Tensor) -> None:
        """Go on with `rows` (indices) only."""
        self._offset, self._starts = self._offset[rows], self._starts[rows]
        self._rows = self._rows[: len(rows)]
        self._valid = None if self._valid is None else self._valid[rows]

    def _columns(self, shift: int, width: int) -> torch.Tensor:
        return self._starts + torch.arange(shift, shift + width, device=self._starts.device)


def _as_mask(visible: torch.Tensor, additive: torch.dtype | None) -> torch.Tensor:
    if additive is None:
        return visible
    return torch.zeros_like(visible, dtype=additive).masked_fill_(~visible, torch.finfo(additive).min)


class SlotCache(Cache):
    """Writes keys and values at the slots of `window` instead of behind the last ones.

    It takes over the layers of another cache, which are empty until `cut` gives them their keys and values back.
    """

    def __init__(self, layers: Sequence[DynamicLayer], first_layer: int = 0, first_slot: int = 0):
        """Take layer `first_layer` of the model to be `layers[0]`, and their first key to stand at `first_slot`."""
        super().__init__(layers=list(layers))
        self.window = Window(slice(0, 0), 0)
        self._dynamic_layers = layers
        self._first_layer = first_layer
        self._first_slot = first_slot
        # Of every layer keys and values (B, 1, room, size).
        self._buffers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(layers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (B, 1, T, size) of all slots before the window's end, the new ones written in."""
        index, window = layer_idx - self._first_layer, self.window
        stop = window.stop - self._first_slot
        buffers = self._buffers[index]
        if buffers is None or buffers[0].shape[-2] < stop:
            buffers = self._grow(index, key_states, value_states, stop + max(GROWTH_TOKENS, stop // 4))
        keys, values = buffers
        window.write(keys, key_states, self._first_slot)
        window.write(values, value_states, self._first_slot)
        return keys[:, :, :stop], values[:, :, :stop]

    def select(self, rows: torch.Tensor) -> None:
        """Go on with `rows` (indices) only."""
        for index, buffers in enumerate(self._buffers):
            if buffers is not None:
                keys, values = buffers
                self._buffers[index] = keys[rows.to(keys.device)], values[rows.to(values.device)]

    def cut(self, num_slots: int) -> None:
        """Give every layer its first `num_slots` keys and values back."""
        for layer, buffers in zip(self._dynamic_layers, self._buffers, strict=True):
            if buffers is None:
                layer.crop(min(0, num_slots - layer.get_seq_length()))
            else:
                layer.keys, layer.values = (buffer[:, :, :num_slots] for buffer in buffers)

    def _grow(
        self, index: int, key_states: torch.Tensor, value_states: torch.Tensor, room: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self._dynamic_layers[index]
        held = self._buffers[index] or (layer.keys, layer.values)
        keys = _grown(key_states, held[0], room)
        values = _grown(value_states, held[1], room)
        # Starting afresh lets go of what the layer holds.
        layer.lazy_initialization(key_states, value_states)
        self._buffers[index] = keys, values
        return keys, values


def _grown(added: torch.Tensor, held: torch.Tensor | None, room: int) -> torch.Tensor:
    # Zeros: a row behind the others gives the slots it has not reached a weight of 0, and 0 * NaN is NaN.
    buffer = added.new_zeros((*added.shape[:-2], room, added.shape[-1]))
    if held is not None and held.numel():
        buffer[..., : held.shape[-2], :] = held
    return buffer
