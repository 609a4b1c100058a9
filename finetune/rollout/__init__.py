"""Rejection sampling: many attempts at each prompt, the right and well-made ones kept as a dataset for fine-tuning."""

from .report import RolloutReport
from .run import Origin, fingerprint_weights, rollout
from .settings import RejectionSamplingSettings

__all__ = ["Origin", "RejectionSamplingSettings", "RolloutReport", "fingerprint_weights", "rollout"]
