"""Errors of seeklet: one base class, each also the built-in a caller would expect."""


class SeekletError(Exception):
    """Base of every error seeklet raises on purpose; its message is one line a user can act on."""


class ConfigError(SeekletError, ValueError):
    """A config field holds a value outside what is allowed; names the field, the value and what is allowed."""


class CheckpointError(SeekletError, RuntimeError):
    """A checkpoint on disk is not what its config says; names the file, the tensor, what was found and expected."""


class GenerationError(SeekletError, ValueError):
    """A generation request that cannot be served as asked; names the argument and what is allowed."""
