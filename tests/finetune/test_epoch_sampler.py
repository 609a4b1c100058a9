"""The order of prompts depends on the seed and the epoch, not on what was drawn before."""

from seeklet.finetune.epoch_sampler import EpochRepeatSampler


def orders(seed: int, epochs: range) -> list[list[int]]:
    sampler = EpochRepeatSampler(range(9), mini_repeat_count=1, batch_size=2, repeat_count=2, seed=seed)
    made = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        made.append(list(sampler))
    return made


def test_a_later_epoch_needs_no_earlier_one() -> None:
    whole = orders(0, range(5))
    assert orders(0, range(3, 5)) == whole[3:]
    assert len({tuple(order) for order in whole + orders(1, range(5))}) == 10
    # Whole batches of two, each of them twice; of nine rows one is left out.
    for order in whole:
        assert order[0:2] == order[2:4] and len(set(order)) == 8 and len(order) == 16
