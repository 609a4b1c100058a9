"""TRL's SFTConfig with what seeklet adds to it."""

from dataclasses import dataclass, field

from trl import SFTConfig


@dataclass
class SeekletSFTConfig(SFTConfig):
    """Settings of supervised fine-tuning."""

    expert_parallel: int = field(
        default=1,
        metadata={"help": "How many processes share the routed experts of a DeepSeek-V3-architecture model."},
    )
