"""Settings of the demo's tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(seeded: None) -> Iterator[None]:
    """One thread, as the demo itself: on matrices this small, two that share a busy core take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
