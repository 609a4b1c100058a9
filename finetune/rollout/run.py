"""Rejection sampling from prompts to the dataset: resumable at any moment, the same however often it was stopped."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from ..atomic_files import replaced_file
from ..attempts import Attempts, Sampler, batch_seed
from ..checkpoints import remove_unfinished
from ..errors import RecipeError, TrainingError
from ..evaluation.progress import row_progress
from ..prompts.read import Prompt, read_prompts
from ..prompts.settings import PromptSettings
from ..published import public_name, without_folders
from ..rewards import RewardSet
from .admission import Admitted, admit, said_by_users
from .attempt_file import AttemptFile
from .choice import judge, share_right
from .dataset import Origin, make_row, public_source
from .overlap import EvaluationIndex
from .report import SHOWN_OVERLAPS, RolloutReport, name_difficulty, say_nothing_kept, write_report
from .settings import RejectionSamplingSettings

logger = logging.getLogger(__name__)
DATASET, UNSOLVED, ATTEMPTS = "dataset.jsonl", "unsolved.jsonl", "attempts-{worker}.jsonl"
# Of each tensor of a model, as many values go into its fingerprint.
FINGERPRINT_VALUES = 16


def rollout(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    rewards: RewardSet,
    settings: RejectionSamplingSettings,
    folder: Path,
    origin: Origin,
    *,
    held_out: Sequence[Prompt] = (),
    sampler: Sampler | None = None,
    console: Console | None = None,
    worker: int = 0,
    num_workers: int = 1,
    wait: Callable[[], object] = lambda: None,
) -> RolloutReport | None:
    """Return the report of rejection sampling, after writing it and the dataset into `folder`; None of other workers.

    `attempts-0.jsonl` holds every attempt; a rollout that was stopped goes on behind the last prompt in it, and one
    that was done and has other filters now is not sampled again. `dataset.jsonl` and the report are written whole, when
    all attempts are made.

    Args:
        model: samples, unless there is a `sampler`.
        tokenizer: the model's.
        prompts: problems; later ones that ask the same are left out.
        rewards: score the attempts.
        settings: see there.
        folder: is made if it is not there.
        origin: goes into the provenance of each row.
        held_out: problems of evaluations, beside those of `settings.evaluation_sets`.
        sampler: another engine that samples, with the same seed the same.
        console: shows the progress.
        worker: the number of this process among `num_workers`; each has a file of attempts, 0 writes the rest.
        num_workers: may be another when a rollout goes on.
        wait: returns when all workers have made their attempts.

    Raises:
        RecipeError: the folder holds another rollout, or a setting names a reward that there is none of.
        DataError: prompts cannot be read, or what was sampled is damaged.
        TrainingError: another process samples as this worker; too many attempts could not be scored; or another worker
            has not made all of its attempts.
        OSError: a file cannot be written.
    """
    console, origin = console or Console(quiet=True), replace(origin, model=public_name(origin.model))
    check_min_rewards(settings, rewards)
    attempts = Attempts.by(model, tokenizer, rewards, settings, sampler)
    index = index_evaluation_sets(settings, held_out)
    admitted = admit(prompts, attempts.encode, index, settings.max_prompt_tokens)
    header = describe(admitted, rewards, settings, origin)
    with AttemptFile(folder / ATTEMPTS.format(worker=worker), header).opened() as own:
        with open_all(own, header) as files:
            sample_missing(files, attempts, admitted, settings, (worker, num_workers), console)
        wait()
        if worker:
            return None
        remove_unfinished(folder)
        with open_all(own, header) as files:
            report = write_dataset(files, admitted, len(prompts), index, settings, origin, folder)
    write_report(report, without_folders(asdict(settings)), folder)
    if finding := say_nothing_kept(report):
        logger.warning("%s: %s", folder, finding)
    return report


@contextmanager
def open_all(own: AttemptFile, header: Mapping[str, Any]) -> Iterator[list[AttemptFile]]:
    """Give the file of this process, and those of other workers, of this run or an earlier one.

    Raises:
        RecipeError: one holds attempts of another rollout.
        DataError: one is damaged.
        OSError: one cannot be read.
    """
    paths = sorted(own.path.parent.glob(ATTEMPTS.format(worker="*")))
    with ExitStack() as stack:
        others = [stack.enter_context(AttemptFile(path, header).reading()) for path in paths if path != own.path]
        yield [own, *others]


def check_min_rewards(settings: RejectionSamplingSettings, rewards: RewardSet) -> None:
    """Check that `min_rewards` names rewards there are.

    Raises:
        RecipeError: it doesn't.
    """
    if unknown := set(settings.min_rewards) - set(rewards.names):
        raise RecipeError(f'min_rewards: there is no reward "{min(unknown)}"; allowed: {", ".join(rewards.names)}')


def index_evaluation_sets(settings: RejectionSamplingSettings, held_out: Sequence[Prompt] = ()) -> EvaluationIndex:
    """Return the index of what users say in the evaluation sets.

    Raises:
        DataError: one cannot be read.
    """
    prompts = list(held_out)
    if settings.evaluation_sets:
        prompts += read_prompts(PromptSettings(train=settings.evaluation_sets))[0]
    texts = ((said_by_users(prompt), prompt.source) for prompt in prompts)
    return EvaluationIndex(texts, settings.ngram, settings.min_ngram)


def describe(
    admitted: Admitted, rewards: RewardSet, settings: RejectionSamplingSettings, origin: Origin
) -> dict[str, Any]:
    """Return what all attempts follow from: a rollout that goes on must have the same."""
    # Of other kinds of value, such as sets, the text may differ between processes.
    texts = [
        (each.ids, [(name, value) for name, value in prompt.columns.items() if isinstance(value, str | int | float)])
        for prompt, each in zip(admitted.prompts, admitted.encoded, strict=True)
    ]
    each = zip(rewards.names, rewards.weights, rewards.rewards, strict=True)
    return {
        "format": 1,
        **asdict(origin),
        "seed": settings.seed,
        "num_samples": settings.num_samples,
        "batch_size": settings.batch_size,
        "sampling": asdict(settings.sampling),
        "threshold": settings.threshold,
        "rewards": [{"name": name, "weight": weight, "reward": repr(reward)} for name, weight, reward in each],
        "prompts": hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest(),
    }


def sample_missing(
    files: Sequence[AttemptFile],
    attempts: Attempts,
    admitted: Admitted,
    settings: RejectionSamplingSettings,
    share: tuple[int, int],
    console: Console,
) -> None:
    """Make the attempts that no file has, into the first one; of every n-th batch, where n workers share them.

    Batches are the same in every run, and each has a seed of its own: it does not matter which were made before.
    """
    worker, num_workers = share
    size = max(1, settings.batch_size // settings.num_samples)
    starts = range(worker * size, len(admitted.prompts), num_workers * size)
    batches = [range(start, min(start + size, len(admitted.prompts))) for start in starts]
    missing = [batch for batch in batches if not all(any(number in file for file in files) for number in batch)]
    if not missing:
        return
    with row_progress(console, "sampling, prompts", sum(map(len, missing))) as advance:
        for batch in missing:
            part = slice(batch.start, batch.stop)
            seed = batch_seed(settings.seed, batch.start)
            made = attempts.make(admitted.prompts[part], admitted.encoded[part], settings.num_samples, seed)
            files[0].add(dict(zip(batch, made, strict=True)))
            advance(len(batch))


def write_dataset(
    files: Sequence[AttemptFile],
    admitted: Admitted,
    num_prompts: int,
    index: EvaluationIndex,
    settings: RejectionSamplingSettings,
    origin: Origin,
    folder: Path,
) -> RolloutReport:
    """Write the dataset, and the prompts that were never solved where they are asked for; return the report.

    Raises:
        TrainingError: a prompt has no attempts.
        OSError: a file cannot be written.
    """
    holders = [next((file for file in files if number in file), None) for number in range(len(admitted.prompts))]
    if num_missing := holders.count(None):
        raise TrainingError(
            f"{num_missing:,} of {len(holders):,} prompts have no attempts yet: a worker was stopped; go on with the "
            "rollout"
        )
    overlaps = [(public_source(prompt), public_source(place)) for prompt, place in admitted.overlaps[:SHOWN_OVERLAPS]]
    report = RolloutReport(num_prompts, dict(admitted.left_out), overlaps=overlaps)
    with ExitStack() as stack:
        dataset = stack.enter_context(stack.enter_context(replaced_file(folder / DATASET)).open("w", encoding="utf-8"))
        unsolved = None
        if settings.never_solved == "list":
            beside = stack.enter_context(replaced_file(folder / UNSOLVED))
            unsolved = stack.enter_context(beside.open("w", encoding="utf-8"))
        for number, (prompt, holder) in enumerate(zip(admitted.prompts, holders, strict=True)):
            assert holder is not None
            made = holder.read(number)
            share = share_right(made)
            objections = judge(made, settings, index)
            for sample, (attempt, objection) in enumerate(zip(made, objections, strict=True)):
                if objection is None:
                    dataset.write(_line(make_row(prompt, attempt, sample, share, origin, settings)))
            if unsolved is not None and not share:
                unsolved.write(_line({"messages": prompt.messages, **prompt.columns}))
            report.count(made, objections, name_difficulty(share))
    report.check()
    return report


def fingerprint_weights(model: torch.nn.Module) -> str:
    """Return 16 hexadecimal digits that change when a model is trained: of some values of each of its tensors."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        chosen = flat[:: max(1, len(flat) // FINGERPRINT_VALUES)][:FINGERPRINT_VALUES]
        digest.update(f"{name} {tuple(tensor.shape)} {chosen.double().tolist()}".encode())
    return digest.hexdigest()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
