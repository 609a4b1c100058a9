"""What has to be read for a model from which file, and what does not fit, before anything is read."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .checkpoint_names import (
    HEADS,
    PREFIX,
    SCALE,
    Slot,
    copy_source,
    expert_number,
    layer_number,
    memory_name,
    slots,
)
from .errors import CheckpointError
from .kernels.block_fp8.reference import BLOCK, scale_shape
from .safetensors_io import NAMES, StoredTensor, read_header

FLOATS = ("F64", "F32", "F16", "BF16")
FP8 = "F8_E4M3"
# Buffers that older versions of transformers saved and that are computed from the config.
LEFTOVERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|position_ids)")
MAX_LISTED = 10


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit. `subject` is a tensor's name, or a file's."""

    subject: str
    found: str
    expected: str
    file: str | None = None

    def __str__(self) -> str:
        where = f" in {Path(self.file).name}" if self.file else ""
        return f"{self.subject}{where}: found {self.found}, expected {self.expected}"


@dataclass(frozen=True)
class Read:
    """One tensor to read into its slot, dequantised by `scale` where it is block-fp8."""

    slot: Slot
    source: StoredTensor
    scale: StoredTensor | None = None


@dataclass(frozen=True)
class Rules:
    """What a model tolerates.

    Args:
        optional: whether the state-dict key may be missing, to be newly initialised.
        tied: {key: key it shares its memory with}; one of both is enough.
        ignore_mismatched_sizes: tensors of another shape are newly initialised instead of refused.
        num_hidden_layers: layers from here on are MTP modules.
        uses_mtp: whether the model has MTP modules; if not, their tensors are passed over.
        unexpected: patterns of names that are passed over.
    """

    optional: Callable[[str], bool] = lambda key: False
    tied: Mapping[str, str] = field(default_factory=dict)
    ignore_mismatched_sizes: bool = False
    num_hidden_layers: int = 0
    uses_mtp: bool = True
    unexpected: tuple[str, ...] = ()


@dataclass
class Plan:
    """What to read, and what is left over.

    Attributes:
        reads: tensors to load, in the order of the files.
        copies: pairs of an MTP module's own embedding or head, and the main tensor that is used instead.
        missing: state-dict keys that nothing fills; newly initialised.
        unexpected: tensors of another task's head, not used.
        mismatched: (key, shape found, shape expected), with `ignore_mismatched_sizes` only.
        passed_over: number of tensors of MTP modules not used because the model has none.
    """

    reads: list[Read] = field(default_factory=list)
    copies: list[tuple[StoredTensor, StoredTensor]] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    mismatched: set[tuple[str, torch.Size, torch.Size]] = field(default_factory=set)
    passed_over: int = 0


def read_headers(
    files: Iterable[str], weight_map: Mapping[str, str] | None = None
) -> tuple[dict[str, StoredTensor], list[Problem]]:
    """Return all tensors of a checkpoint by name, and what is wrong with its files.

    Args:
        files: the shards.
        weight_map: {tensor: file name} of the index, where there is one.
    """
    stored: dict[str, StoredTensor] = {}
    problems, unreadable = [], set()
    for file in files:
        try:
            header = read_header(file)
        except CheckpointError as error:
            problems.append(error)
            unreadable.add(Path(file).name)
            continue
        for name in stored.keys() & header.keys():
            other = Path(stored[name].file).name
            problems.append(Problem(name, f"it in {other}, too", "it once", file))
        stored.update(header)
    for name, file in (weight_map or {}).items():
        if file not in unreadable and (name not in stored or Path(stored[name].file).name != file):
            found = f"it in {Path(stored[name].file).name}" if name in stored else "no such tensor"
            problems.append(Problem(name, found, "it there, as the index says", file))
    return stored, problems


def make_plan(
    expected: Mapping[str, torch.Tensor], stored: Mapping[str, StoredTensor], rules: Rules
) -> tuple[Plan, list[Problem]]:
    """Return what to read into a model with state dict `expected` (meta tensors), and what does not fit."""
    return _Planner(expected, stored, rules).run()


def refuse(problems: Iterable[Problem | CheckpointError], what: str) -> None:
    """Raise CheckpointError with the first ten of `problems`, if there are any; `what` says what was read."""
    lines = [str(problem) for problem in problems]
    if not lines:
        return
    more = [f"… and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise CheckpointError("\n  ".join([f"{what}: {count}:", *lines[:MAX_LISTED], *more]))


class _Planner:
    def __init__(self, expected: Mapping[str, torch.Tensor], stored: Mapping[str, StoredTensor], rules: Rules):
        self.expected, self.stored, self.rules = expected, stored, rules
        self.plan = Plan()
        self.problems: list[Problem] = []
        self.used: set[str] = set()
        in_memory, on_disk = (any(name.startswith(PREFIX) for name in names) for names in (expected, stored))
        self.strip, self.add = in_memory and not on_disk, on_disk and not in_memory

    def run(self) -> tuple[Plan, list[Problem]]:
        for key, tensor in self.expected.items():
            self._plan_tensor(key, tensor)
        for name in self.stored.keys() - self.used:
            self._pass_over(name)
        self._check_missing()
        self.plan.reads.sort(key=lambda read: (read.source.file, read.source.offset))
        return self.plan, self.problems

    def disk_name(self, name: str) -> str:
        """Return `name` as this checkpoint has it: with or without the prefix of the base model."""
        if self.strip:
            return name.removeprefix(PREFIX)
        return PREFIX + name if self.add else name

    def _plan_tensor(self, key: str, tensor: torch.Tensor) -> None:
        wanted = slots(key, tensor.shape)
        if len(wanted) > 1 and self.disk_name(key) in self.stored:
            wanted = [Slot(key, key, tuple(tensor.shape))]
        found = [slot for slot in wanted if self.disk_name(slot.disk_name) in self.stored]
        if not found:
            self.plan.missing.add(key)
            return
        if self.rules.ignore_mismatched_sizes and self._mismatched(key, tensor, found[0]):
            return
        for slot in wanted:
            name = self.disk_name(slot.disk_name)
            source = self.stored.get(name)
            if source is None:
                self.problems.append(Problem(name, "no such tensor", _describe(slot.shape, tensor.dtype)))
                continue
            self.used.add(name)
            scale = self._scale(source, tensor.dtype)
            if self._fits(source, slot, tensor.dtype):
                self.plan.reads.append(Read(slot, source, scale))

    def _scale(self, source: StoredTensor, dtype: torch.dtype) -> StoredTensor | None:
        """Return the scales to dequantise `source` with; report what is wrong with them."""
        if source.dtype != FP8 or dtype == torch.float8_e4m3fn:
            return None
        scale = self.stored.get(source.name + SCALE)
        if len(source.shape) != 2:
            self.problems.append(Problem(source.name, str(source), "fp8 weights in 2 dimensions", source.file))
        elif scale is None:
            shape = scale_shape(source.shape[0], source.shape[1])
            expected = f"its scales {source.name}{SCALE}, F32 {shape}, or an unscaled dtype"
            self.problems.append(Problem(source.name, f"{source} without scales", expected, source.file))
        else:
            self.used.add(scale.name)
            shape = scale_shape(source.shape[0], source.shape[1])
            if (scale.dtype, scale.shape) != ("F32", shape):
                expected = f"F32 {shape}, one per block of {BLOCK[0]} x {BLOCK[1]} of {source.shape}"
                self.problems.append(Problem(scale.name, str(scale), expected, scale.file))
        return scale

    def _fits(self, source: StoredTensor, slot: Slot, dtype: torch.dtype) -> bool:
        if dtype == torch.float8_e4m3fn:
            dtype_fits = source.dtype == FP8
        elif slot.disk_name.endswith(SCALE):
            dtype_fits = source.dtype == "F32"
        elif dtype.is_floating_point:
            dtype_fits = source.dtype in (*FLOATS, FP8)
        else:
            dtype_fits = source.dtype not in (*FLOATS, FP8)
        if dtype_fits and source.shape == slot.shape:
            return True
        self.problems.append(Problem(source.name, str(source), _describe(slot.shape, dtype), source.file))
        return False

    def _mismatched(self, key: str, tensor: torch.Tensor, slot: Slot) -> bool:
        """Note and return whether `key` has another shape on disk, or its experts are another number."""
        if slot.key == slot.disk_name:
            names = [self.disk_name(key)]
            shape = self.stored[names[0]].shape
        else:
            names = [name for name in self.stored if memory_name(name) == self.disk_name(key)]
            shapes = {self.stored[name].shape for name in names}
            numbers = [number for name in names if (number := expert_number(name)) is not None]
            per_expert = max(1, numbers.count(0))
            # Experts of different shapes, or with gaps between them, are no other size but a broken checkpoint.
            if len(shapes) != 1 or sorted(numbers) != sorted([*range(len(names) // per_expert)] * per_expert):
                return False
            rows, *columns = shapes.pop()
            halves = [] if key.endswith(SCALE) else [rows * per_expert]
            shape = (len(names) // per_expert, *halves, *columns)
        if tuple(shape) == tuple(tensor.shape):
            return False
        self.used.update(names)
        self.plan.mismatched.add((key, torch.Size(shape), tensor.shape))
        return True

    def _pass_over(self, name: str) -> None:
        """Sort out a tensor that nothing in the model takes: a copy, known to be ignored, or a problem."""
        source, stored = copy_source(name), self.stored[name]
        layer = layer_number(name)
        is_mtp = layer is not None and layer >= self.rules.num_hidden_layers
        if is_mtp and not self.rules.uses_mtp:
            self.plan.passed_over += 1
        elif is_mtp and source is not None and self._has_layer(layer):
            source = source if source in self.stored else self.rules.tied.get(source, source)
            if source in self.stored:
                self.plan.copies.append((stored, self.stored[source]))
        elif name.startswith(HEADS):
            self.plan.unexpected.add(name)
        elif name.endswith(SCALE) and name.removesuffix(SCALE) in self.stored:
            weight = self.stored[name.removesuffix(SCALE)]
            self.problems.append(Problem(weight.name, str(weight), f"{FP8}, as it has scales", weight.file))
        elif not any(re.search(pattern, name) for pattern in (LEFTOVERS, *self.rules.unexpected)):
            self.problems.append(Problem(name, str(stored), "no such tensor", stored.file))

    def _has_layer(self, layer: int | None) -> bool:
        return any(layer_number(key) == layer for key in self.expected)

    def _check_missing(self) -> None:
        """Report what is missing, except what may be."""
        for key in sorted(self.plan.missing):
            partner = self.rules.tied.get(key) or next((k for k, v in self.rules.tied.items() if v == key), None)
            if self.rules.optional(key) or (partner is not None and partner not in self.plan.missing):
                continue
            tensor = self.expected[key]
            for slot in slots(key, tensor.shape):
                name = self.disk_name(slot.disk_name)
                self.problems.append(Problem(name, "no such tensor", _describe(slot.shape, tensor.dtype)))


def _describe(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    if dtype == torch.float8_e4m3fn:
        return f"{FP8} {shape}"
    return f"{'a float dtype' if dtype.is_floating_point else NAMES[dtype]} {shape}"
