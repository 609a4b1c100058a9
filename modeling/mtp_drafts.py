"""Drafts of the next tokens by the MTP modules, each with a cache of its own."""

# B rows, S positions, H hidden, k depth of the module, counted from 1

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import DynamicLayer

from .slot_cache import Cursor, SlotCache, Window

if TYPE_CHECKING:
    from .heads import SeekletForCausalLM

# From the state h^k (B, 1, H) that predicts the token, and k: the draft (B, 1).
ChooseDraft = Callable[[torch.Tensor, int], torch.Tensor]


class MTPDrafter:
    """Drafts with modules 1 ... depth, after each pass of the main model.

    Module k fills its slot i from h^{k-1}_i and token i + k. Where that token was itself a draft, the slot may turn
    out wrong. So at every step module k starts k - 1 slots further back than the main model did and fills those again;
    of h^{k-1} only the first of these slots is not computed anyway, and it is kept from the step before.

    Example, depth 2: the main model has filled slots 5 and 6 from tokens t5 (accepted before) and d6, and its logits
    say that d6 is right and t7 follows. Module 1 fills slots 5 and 6 from (h_5, t6), (h_6, t7) and drafts d8. Module 2
    fills slot 4, which until now held draft d6, and slots 5 and 6, from (h^1_4, t6), (h^1_5, t7), (h^1_6, d8), and
    drafts d9. The next main pass fills slots 7, 8 and 9 from t7, d8 and d9.
    """

    def __init__(self, model: "SeekletForCausalLM", depth: int, first_slot: int):
        """Use the first `depth` MTP modules of `model`; their caches begin at slot `first_slot`."""
        config = model.config
        self.depth = depth
        self._model = model.model
        self.embed = model.get_input_embeddings()
        self._rotary = model.model.rotary_emb
        self._modules = list(model.model.layers)[config.num_hidden_layers :][:depth]
        self._cache = SlotCache([DynamicLayer() for _ in self._modules], config.num_hidden_layers, first_slot)
        self._first_slot = first_slot
        # h^k of the slot where module k + 1 starts at the next step, for k = 1 ... depth - 1.
        self._kept: list[torch.Tensor] = []

    def prefill(
        self,
        hidden: torch.Tensor,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        cursor: Cursor,
        tokens: torch.Tensor,
        choose: ChooseDraft,
    ) -> None:
        """Fill the caches for a prompt and write `depth` drafts into `tokens`, behind the first token generated.

        Args:
            hidden: h^0, what the main model made of the prompt's embeddings `inputs_embeds`, both (B, S, H).
            attention_mask: (B, S), as the main model had it; `position_ids` (B or 1, S) likewise.
            cursor: stands at the last token of the prompt.
            tokens: all tokens of each row, one column a slot.
            choose: how a draft is chosen.
        """
        num_slots, kept = hidden.shape[1], []
        shared = self._model._shared_inputs(inputs_embeds, attention_mask, position_ids, None)
        stop = self._first_slot + num_slots
        self._cache.window = Window(slice(self._first_slot, stop), stop)
        for k, module in enumerate(self._modules, start=1):
            ahead = torch.cat((inputs_embeds, self.embed(cursor.read(tokens, 1, k))), dim=1)[:, k:]
            hidden = module(hidden, ahead, past_key_values=self._cache, **shared)
            if k < self.depth:
                kept.append(hidden[:, num_slots - k : num_slots - k + 1])
            cursor.write(tokens, k + 1, choose(hidden[:, -1:], k))
        self._kept = kept

    def select(self, rows: torch.Tensor) -> None:
        """Go on with `rows` (indices) only."""
        self._cache.select(rows)
        self._kept = [hidden[rows.to(hidden.device)] for hidden in self._kept]

    def draft(self, hidden: torch.Tensor, cursor: Cursor, tokens: torch.Tensor, choose: ChooseDraft) -> None:
        """Write `depth` drafts into `tokens` (B, columns), behind the tokens that each row has by now.

        Args:
            hidden: h^0 (B, S, H) of the slots from the cursor on, as many as the row that keeps most has taken.
            cursor: stands where the main model's last pass started, and knows how many of its drafts were kept.
            tokens: all tokens of each row, one column a slot.
            choose: how a draft is chosen.
        """
        width, kept = hidden.shape[1], []
        for k, module in enumerate(self._modules, start=1):
            if k > 1:
                hidden = torch.cat((self._kept[k - 2], hidden), dim=1)
            window = cursor.window(1 - k, width + k - 1, self._first_slot)
            self._cache.window = window
            embeds = self.embed(cursor.read(tokens, 1, width + k - 1))
            hidden = module(
                hidden,
                embeds,
                position_embeddings=self._rotary(embeds, window.position_ids),
                attention_mask=window.mask,
                position_ids=window.position_ids,
                past_key_values=self._cache,
            )
            if k < self.depth:
                kept.append(cursor.pick(hidden, 0))
            # The token behind the kept drafts stands 1 behind the last of them.
            cursor.place(tokens, k + 1, choose(cursor.pick(hidden, k - 1), k))
        self._kept = kept
