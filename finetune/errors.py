"""Errors of fine-tuning, each a `SeekletError` and the built-in a caller would expect."""

from seeklet.modeling import SeekletError


class RecipeError(SeekletError, ValueError):
    """A recipe cannot be carried out as written; names the file, the key, the value and what is allowed."""


class DataError(SeekletError, ValueError):
    """Training or evaluation data cannot be used; names the file, the line and what is allowed."""


class TrainingError(SeekletError, RuntimeError):
    """Training had to stop; says why, at which step, and which checkpoint is the last good one."""


class AdapterError(SeekletError, ValueError):
    """An adapter cannot be saved, loaded, exported or merged; names the folder or tensor and what was expected."""


class RewardError(SeekletError, ValueError):
    """One sample cannot be scored; says which column, value or check was at fault. A `RewardSet` goes on after it."""


class PublishError(SeekletError, RuntimeError):
    """Nothing was published, or not all of it; says what of which file or repository is wrong and how to mend it."""


class ExportError(SeekletError, RuntimeError):
    """A model was not written as GGUF; says what of it, or which program, was in the way."""
