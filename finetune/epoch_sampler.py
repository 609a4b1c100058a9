"""The order of prompts in training on samples: another one in each epoch, and the same after a run is resumed."""

import torch
from trl.trainer.utils import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """TRL's RepeatSampler, whose order depends on the seed and the epoch only.

    TRL's goes on drawing from one generator, which stands at its beginning again when a run is resumed: the epoch in
    which it goes on would have the order of the first.
    """

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`; Trainer says which one begins."""
        if self.shuffle:
            sequence = torch.Generator().manual_seed(self.seed or 0)
            # Not seed + epoch: runs of neighbouring seeds would share their orders.
            seeds = torch.randint(2**62, (epoch + 1,), generator=sequence)
            self.generator.manual_seed(int(seeds[-1]))
