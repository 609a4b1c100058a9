"""Placeholder until the checkpoint reader lands."""


class CheckpointMixin:
    """To be replaced."""

    _uses_mtp = True
