"""One thread, which nano sizes gain nothing from exceeding; and memory that is NaN until it is written."""

from collections.abc import Iterator

import pytest
import torch
import torch.utils.deterministic


@pytest.fixture(autouse=True)
def one_thread(seeded: None) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that an element never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
