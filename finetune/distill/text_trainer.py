"""On-policy distillation from a teacher with another tokenizer: the two are compared over spans of text."""

# B rows, C completion tokens of the student, T tokens of the teacher, K spans of a row, N spans of all rows

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DistillationConfig

from seeklet.modeling.head_loss import head_log_probs
from seeklet.modeling.mtp import IGNORE_INDEX, shift_left

from ..errors import RecipeError
from ..reasoning import THINK, opens_reasoning
from .head_divergence import Distances
from .on_policy_trainer import SeekletDistillationTrainer
from .span_losses import last_of_spans, sampled_reverse_kl, sorted_distance, span_sums
from .student_pass import bare_model
from .text_alignment import align, decode_ends, encode_ends

# Tokens at the end of a prompt that are looked at for the tag that opens reasoning, and blank space behind it.
NUM_LAST = 12


class SeekletTextDistillationTrainer(SeekletDistillationTrainer):
    """SeekletDistillationTrainer for two tokenizers, neither of which has to be of any kind.

    The teacher reads the student's sample as text, behind the prompt as its own template has it. Spans end where a
    token of both ends; the end of the sequence is one more. Of a sample that was cut off the last span is left out:
    the teacher would find it unlikely for where it ends.
    """

    def __init__(
        self,
        model: Any,
        teacher: PreTrainedModel,
        config: DistillationConfig,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
        *args: Any,
        text_loss: Literal["sampled", "sorted"] = "sampled",
        **kwargs: Any,
    ):
        """Make a trainer: `text_loss` is that of `OnPolicySettings`, all else of SeekletDistillationTrainer.

        Raises:
            RecipeError: the config asks for another divergence, or the teacher's tokenizer has no template or end.
        """
        if config.beta != 1:
            raise RecipeError(
                f"trainer.beta is {config.beta:g}, but alignment is text, which compares no whole vocabularies; "
                "allowed: 1"
            )
        if teacher_tokenizer.eos_token_id is None:
            raise RecipeError(
                f"the teacher's tokenizer ({teacher_tokenizer.name_or_path}) has no end-of-sequence token; allowed: "
                "one that has, since the student is to learn where a text ends"
            )
        self._text_loss = text_loss
        super().__init__(model, teacher, config, tokenizer, teacher_tokenizer, *args, **kwargs)

    def _check_vocabularies(self, teacher: PreTrainedModel) -> None:
        self._num_shared = 0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"].bool()
        completions = [row[kept].tolist() for row, kept in zip(batch["completion_ids"], mask, strict=True)]
        last = batch["prompt_ids"][:, -NUM_LAST:].tolist()
        rows = [
            self._align(prompt["prompt"], ids, tokens)
            for prompt, ids, tokens in zip(inputs, last, completions, strict=True)
        ]
        student_spans, teacher_ids, teacher_spans = zip(*rows, strict=True)
        device = batch["completion_ids"].device
        pad: Any = self._teacher_tokenizer.pad_token_id
        batch["teacher_ids"] = _padded(teacher_ids, pad or 0, device)
        batch["teacher_mask"] = _padded([[1] * len(row) for row in teacher_ids], 0, device)
        batch["teacher_spans"] = _padded(teacher_spans, -1, device)
        width = batch["completion_ids"].shape[1]
        batch["student_spans"] = _padded([*student_spans, [-1] * width], -1, device)[:-1]
        # In the batch, so that TRL shuffles and splits them with the rows they belong to.
        compared: Any = self.accelerator.gather((batch["student_spans"] >= 0).sum())
        metrics = self._metrics["train" if self.model.training else "eval"]  # pyright: ignore
        metrics["aligned_share"].append((compared.sum() / batch["num_items_in_batch"].clamp(min=1)).item())
        batch["num_items_in_batch"] = compared.sum()
        return batch

    def _align(self, prompt: Any, last: list[int], completion: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Return the spans of the student's tokens, the teacher's tokens, prompt included, and their spans."""
        ended = bool(completion) and completion[-1] in self.eos_token_ids
        read = decode_ends(self._tokenizer, completion[:-1] if ended else completion)
        scored = encode_ends(self._teacher_tokenizer, read.text)
        student, teacher, number = align(read.ends, scored.ends)
        tokens = scored.tokens
        if ended:
            student, teacher, tokens = [*student, number], [*teacher, number], [*tokens, self._teacher_end]
        else:
            student, teacher = ([-1 if span == number - 1 else span for span in spans] for spans in (student, teacher))
        before = self._teacher_prompt(prompt, opens_reasoning(str(self._tokenizer.decode(last))))
        return student, [*before, *tokens], [*[-1] * len(before), *teacher]

    @property
    def _teacher_end(self) -> int:
        end: Any = self._teacher_tokenizer.eos_token_id
        return int(end)

    def _teacher_prompt(self, prompt: Any, opened: bool) -> list[int]:
        """Return a prompt as the teacher reads it, inside the reasoning where the student's prompt has `opened` it."""
        tokenizer = self._teacher_tokenizer
        if isinstance(prompt, str):
            return list(tokenizer.encode(prompt))
        if tokenizer.chat_template is None:
            raise RecipeError(
                f"the teacher's tokenizer ({tokenizer.name_or_path}) has no chat template, and the prompts are "
                "messages; allowed: a teacher with one, or prompts that are texts"
            )
        options: Any = self.chat_template_kwargs
        text = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **options))
        if opened and not opens_reasoning(text):
            text += f"{THINK}\n"
        elif opens_reasoning(text) and not opened:
            text = text.rstrip().removesuffix(THINK)
        return list(tokenizer.encode(text, add_special_tokens=False))

    def _num_compared(self, inputs: dict[str, Any]) -> torch.Tensor:
        return (inputs["student_spans"] >= 0).sum()

    def _distances(
        self,
        student: nn.Module,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        inputs: dict[str, Any],
    ) -> Distances:
        spans = inputs["student_spans"]
        targets = inputs["completion_ids"].masked_fill(spans < 0, IGNORE_INDEX)
        head, teacher_head = bare_model(student).get_output_embeddings(), self._bare_teacher().get_output_embeddings()
        log_probs, entropy = self._log_probs(head, hidden, targets)
        teacher_hidden = self._teacher_hidden(inputs["teacher_ids"], inputs["teacher_mask"])
        # What predicts a token stands one place in front of it.
        teacher_spans = shift_left(inputs["teacher_spans"], 1, -1)
        teacher_targets = shift_left(inputs["teacher_ids"], 1, 0).masked_fill(teacher_spans < 0, IGNORE_INDEX)
        with torch.no_grad():
            teacher_log_probs, _ = self._log_probs(teacher_head, teacher_hidden, teacher_targets)
        number = max(1, int(spans.max()) + 1)
        sums = span_sums(log_probs, spans, number), span_sums(teacher_log_probs, teacher_spans, number)
        last, teacher_last = last_of_spans(spans, number), last_of_spans(teacher_spans, number)
        there = last >= 0
        if self._text_loss == "sampled":
            return Distances(sampled_reverse_kl(sums[0][there], sums[1][there]), entropy.detach())
        sides: list[torch.Tensor] = []
        for states, values, total, at in (
            (hidden, log_probs, sums[0], last),
            (teacher_hidden, teacher_log_probs, sums[1], teacher_last),
        ):
            rows, columns = there.nonzero()[:, 0], at[there]
            sides += [states[rows, columns], total[there] - values[rows, columns]]
        distance = sorted_distance(head, sides[0], sides[1], teacher_head, sides[2], sides[3], self.temperature)
        return Distances(distance, entropy.detach())

    def _log_probs(
        self, head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = head_log_probs(head, hidden.flatten(0, 1), targets.flatten(), self.temperature)
        log_probs, entropy = (value.view(targets.shape) for value in values)
        return log_probs, entropy


def _padded(rows: Sequence[Sequence[int]], value: int, device: Any) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.long, device=device) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
