"""`generate(use_mtp=True)`: each pass of the main model checks the drafts of the MTP modules and adds one token."""

# B rows, S slots of a step (drafts + 1), H hidden, V vocabulary

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation import GenerationConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .mtp_drafts import MTPDrafter
from .prefix_rules import PrefixProcessors, RowEnds, TokenRecord
from .slot_cache import AlignedCursor, Cursor, RaggedCursor, SlotCache
from .speculative import accept_greedy, accept_sampled

# Rows leave once so many of them have ended: taking rows out copies the caches of the others.
LEAVING_SHARE = 0.2


@dataclass
class SeekletMTPOutput(GenerateDecoderOnlyOutput):
    """What `generate(use_mtp=True, return_dict_in_generate=True)` returns beside transformers' fields.

    `num_main_steps` counts passes of the main model behind the prompt's, `num_drafts` the drafts they checked in rows
    that had not ended, `num_accepted_drafts` those that are part of `sequences`.
    """

    num_main_steps: int | None = None
    num_drafts: int | None = None
    num_accepted_drafts: int | None = None


class MTPDecoding:
    """One call of `generate(use_mtp=True)`, from the prompt to the output.

    Slot i of every cache holds token i of the row, and column i of `tokens` is that token. A step runs the main model
    over the last accepted token of each row and the D drafts behind it, keeps the leading drafts that are right and
    the one token that follows from them, and lets the MTP modules draft anew. What is wrong stays where it is until
    the next step, which starts behind the last token accepted, writes over it.

    Rows that have ended leave the batch where only `sequences` are asked for. Then `tokens`, `ends`, the cursor and
    the caches are of the rows that are left, `rows` says which those are, and all rows are put together at the end.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        ends: RowEnds,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
    ):
        # A SeekletForCausalLM; transformers types its generation for a protocol that no model meets.
        self.model = model
        self.input_ids = input_ids
        self.ends = ends
        self.config = generation_config
        self.synced = synced_gpus
        self.streamer = streamer
        self.sampling = bool(generation_config.do_sample)
        wanted = bool(generation_config.return_dict_in_generate)
        self.scores = TokenRecord(input_ids.shape[1]) if wanted and generation_config.output_scores else None
        self.logits = TokenRecord(input_ids.shape[1]) if wanted and generation_config.output_logits else None
        # The probabilities (B, V) that each of the D drafts was sampled from.
        self.proposal: list[torch.Tensor] = []
        self.num_main_steps = self.num_drafts = self.num_accepted_drafts = 0
        self.rows = list(range(len(input_ids)))
        self.all_ends = ends

    def run(self, inputs: dict[str, Any], logits_processor: list) -> SeekletMTPOutput:
        """Return sequences and counts; `inputs` are what the main model takes for the prompt, its cache included."""
        cache = inputs["past_key_values"]
        with self.model._optimize_model_for_decode():
            self._prefill(inputs, logits_processor)
            try:
                while self.model._has_unfinished_sequences(self.ends.done, self.synced, self.input_ids.device):
                    self._step()
                self._gather_rows()
                total = self._pad_rows(cache)
            except BaseException:
                # A criterion or processor of the user's failed: a cache of theirs must not stay longer than its text.
                self.cache.cut(self.shift + min(self.ends.lengths) - 1)
                raise
        self.cache.cut(self.shift + total - 1)
        if self.streamer is not None:
            self.streamer.end()
        fields: dict[str, Any] = {
            "sequences": self.tokens[:, self.shift : self.shift + total].clone(),
            "past_key_values": cache,
            "num_main_steps": self.num_main_steps,
            "num_drafts": self.num_drafts,
            "num_accepted_drafts": self.num_accepted_drafts,
        }
        for name, record in (("scores", self.scores), ("logits", self.logits)):
            if record is not None:
                fields[name] = record.finish(self.ends.lengths, total)
        return SeekletMTPOutput(**fields)

    def _prefill(self, inputs: dict[str, Any], logits_processor: list) -> None:
        cache, model = inputs["past_key_values"], self.model
        first_slot = cache.get_seq_length()
        hidden = model.model(**inputs, use_cache=True).last_hidden_state
        num_slots, mask = cache.get_seq_length(), inputs.get("attention_mask")
        prompt_mask = None if mask is None else mask[:, first_slot:]
        self.depth = self._choose_depth(num_slots - first_slot, prompt_mask)
        self._lay_out(cache, num_slots, mask, inputs["position_ids"], hidden.dtype)
        self.processors = PrefixProcessors(logits_processor, self.tokens[:, self.shift :])
        self.all_tokens = self.tokens
        returned = self.config.return_dict_in_generate or getattr(cache, "_is_user_defined", False)
        # Hooks, as of `record_routing`, take the rows of a pass for those of the batch.
        watched = returned or self.streamer is not None or bool(model.model._forward_pre_hooks)
        self.rows_may_leave = not (watched or self.synced) and self.ends.rows_may_leave and self.processors.prefix_free
        self.drafter = MTPDrafter(model, self.depth, first_slot)

        logits = self._head(hidden[:, -1:])
        scores = self._process(logits)
        token = torch.multinomial(scores[:, 0].softmax(-1), 1) if self.sampling else scores.argmax(-1)
        self._accept(token, torch.zeros_like(token[:, 0]), logits, scores)
        if not self.ends.done or self.synced:
            embeds = inputs.get("inputs_embeds")
            embeds = self.drafter.embed(inputs["input_ids"]) if embeds is None else embeds
            positions = inputs["position_ids"]
            self.drafter.prefill(hidden, embeds, prompt_mask, positions, self.cursor, self.tokens, self._choose)
        self._move()

    def _choose_depth(self, num_slots: int, prompt_mask: torch.Tensor | None) -> int:
        """Return D, the modules that draft: module k needs k - 1 tokens in every prompt to start from."""
        shortest = num_slots if prompt_mask is None else int(prompt_mask.sum(1).min())
        depth = min(self.model.config.num_nextn_predict_layers, shortest + 1)
        if self.synced:
            # Ranks that gather parameters together must run the same modules.
            smallest = torch.tensor(depth, device=self.input_ids.device)
            dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
            depth = int(smallest)
        return depth

    def _lay_out(
        self,
        cache: DynamicCache,
        num_slots: int,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:
        """Make the token buffer, the cursor and the cache to decode with; the prompt fills `num_slots` slots."""
        rows, prompt_length = self.input_ids.shape
        # Embeddings given as the prompt, or a cache that came with it, fill slots that no column of input_ids has.
        self.shift = num_slots - prompt_length
        room = self.shift + self.ends.max_length + 2 * self.depth + 2
        self.tokens = self.input_ids.new_zeros(rows, room)
        self.tokens[:, self.shift : num_slots] = self.input_ids
        # Booleans mask faster, but only PyTorch's own attention and ours take them.
        additive = None if self.model.config._attn_implementation == "sdpa" else dtype
        offset = position_ids[:, -1:] - (num_slots - 1)
        if rows == 1 and attention_mask is None:
            self.cursor: Cursor = AlignedCursor(offset, room, 2 * self.depth + 1, additive)
        else:
            valid = None
            if attention_mask is not None:
                valid = torch.ones(rows, room, dtype=torch.bool, device=attention_mask.device)
                valid[:, :num_slots] = attention_mask
            self.cursor = RaggedCursor(offset.expand(rows, 1), valid, additive)
        self.cursor.move([num_slots - 1] * rows)
        self.cache = SlotCache(cast(list[DynamicLayer], cache.layers))

    def _step(self) -> None:
        hidden, chunk = self._forward(self.depth + 1)
        logits = self._head(hidden)
        scores = self._process(logits)
        drafts = chunk[:, 1:]
        if self.sampling:
            uniform = torch.rand(drafts.shape, device=drafts.device)
            proposal = torch.stack(self.proposal, dim=1)
            tokens, num_kept = accept_sampled(scores.softmax(-1), proposal, drafts, uniform)
        else:
            tokens, num_kept = accept_greedy(scores, drafts)
        self.num_main_steps += not self.ends.done
        self.num_drafts += self.depth * sum(not self.ends.is_frozen(row) for row in range(len(chunk)))
        kept = self._accept(tokens, num_kept, logits, scores)
        if not self.ends.done or self.synced:
            hidden, kept = self._let_rows_leave(hidden, kept)
            self.cursor.keep(kept)
            self.proposal = []
            self.drafter.draft(hidden[:, : max(kept) + 1], self.cursor, self.tokens, self._choose)
        self._move()

    def _forward(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return h^0 (B, width, H) and the tokens (B, width) it was made from, beginning where the cursor stands."""
        window = self.cursor.window(0, width)
        chunk = self.cursor.read(self.tokens, 0, width)
        self.cache.window = window
        outputs = self.model.model(
            input_ids=chunk,
            attention_mask=window.mask,
            position_ids=window.position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state, chunk

    def _accept(
        self, tokens: torch.Tensor, num_kept: torch.Tensor, logits: torch.Tensor, scores: torch.Tensor
    ) -> list[int]:
        """Return how many drafts each row keeps, after adding them and the token behind them to the row.

        `num_kept` (B,) of the `tokens` (B, S) are right drafts. A row that ends keeps what is in front of its end.
        """
        # The only time in a step that the host waits for the device.
        offered = torch.cat((num_kept[:, None], tokens), dim=1).tolist()
        before = list(self.ends.lengths)
        taken = self.ends.advance([row[1:] for row in offered], [row[0] for row in offered])
        self.cursor.write(self.tokens, 1, tokens)
        for record, values in ((self.logits, logits), (self.scores, scores)):
            if record is not None:
                record.add(values, before, taken)
        self.ends.stop(self.tokens[:, self.shift :], taken, None if self.scores is None else self.scores.steps)
        if self.streamer is not None:
            for token in offered[0][1 : taken[0] + 1]:
                self.streamer.put(torch.tensor([token]))
        self.num_accepted_drafts += sum(min(row[0], count) for row, count in zip(offered, taken, strict=True))
        return [max(count - 1, 0) for count in taken]

    def _let_rows_leave(self, hidden: torch.Tensor, kept: list[int]) -> tuple[torch.Tensor, list[int]]:
        """Return `hidden` (B, S, H) and `kept` of the rows that go on."""
        going_on = [row for row in range(len(kept)) if not self.ends.is_frozen(row)]
        if not self.rows_may_leave or len(going_on) > (1 - LEAVING_SHARE) * len(kept):
            return hidden, kept
        self._note_rows()
        chosen = torch.tensor(going_on, device=self.tokens.device)
        self.rows = [self.rows[row] for row in going_on]
        self.ends, self.tokens = self.ends.select(going_on), self.tokens[chosen]
        assert isinstance(self.cursor, RaggedCursor), "a single row does not leave before the end"
        for part in (self.cursor, self.cache, self.drafter):
            part.select(chosen)
        return hidden[chosen.to(hidden.device)], [kept[row] for row in going_on]

    def _note_rows(self) -> None:
        """Put what the rows that are left have by now among all rows."""
        if self.ends is not self.all_ends:
            self.all_tokens[self.rows] = self.tokens
            self.all_ends.update(self.rows, self.ends)

    def _gather_rows(self) -> None:
        self._note_rows()
        self.tokens, self.ends = self.all_tokens, self.all_ends

    def _move(self) -> None:
        self.cursor.move([self.shift + length - 1 for length in self.ends.lengths])

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (B, S, V) as plain `generate` takes them: fp32, where the tokens are."""
        return self.model.lm_head(hidden).to(device=self.tokens.device, dtype=torch.float32)

    def _process(self, logits: torch.Tensor, ahead: int = 0) -> torch.Tensor:
        """Return what the logits processors make of `logits` (B, S, V), the first `ahead` tokens behind each row."""
        return self.processors(logits, self.ends.prefix_lengths(ahead)) if self.processors else logits

    def _choose(self, hidden: torch.Tensor, depth: int) -> torch.Tensor:
        """Return the draft (B, 1) of module `depth` from its state (B, 1, H) at the last accepted token."""
        scores = self._process(self._head(hidden), depth - 1)
        if not self.sampling:
            return scores.argmax(-1)
        self.proposal.append(scores[:, 0].softmax(-1))
        return torch.multinomial(self.proposal[-1], 1)

    def _pad_rows(self, cache: DynamicCache) -> int:
        """Return the length of the output, after padding shorter rows up to it and, where it is kept, their cache."""
        lengths, total = self.ends.lengths, self.ends.total
        shortest = min(lengths)
        if self.ends.pads and shortest < total:
            columns = torch.arange(total, device=self.tokens.device)
            padding = columns >= torch.tensor(lengths, device=self.tokens.device)[:, None]
            text = self.tokens[:, self.shift : self.shift + total]
            text.masked_fill_(padding, int(self.config.pad_token_id))
        # Plain generate runs ended rows on over padding until the longest ends: their last token is in the cache too.
        missing = max(total - shortest, int(self.synced))
        returned = self.config.return_dict_in_generate or getattr(cache, "_is_user_defined", False)
        if returned and missing > 0:
            self.cursor.move([self.shift + total - 1 - missing] * len(lengths))
            self._forward(missing)
        return total
