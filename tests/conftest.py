"""Settings every test runs under: offline, seeded, at most two threads; GPU tests skip without a GPU."""

import os

# Before transformers is imported: a test that would reach a hub must fail at once, not wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import gc
import random
import signal
from collections.abc import Iterator

import numpy
import pytest
import torch

# Nano models gain nothing from a second thread, and on busy cores two take many times as long as one.
MAX_THREADS = 1

# A shell starts what it runs in the background deaf to Ctrl-C, and so would be every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files go to the processes whole and in this order: one of two minutes that came last would have a core to itself.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    # What was imported stays: the collector need not look through it again and again, a third of a second each time.
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed every generator a test may draw from; bound the threads, as more on contended cores are slower."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(MAX_THREADS, threads))
    yield
    torch.set_num_threads(threads)
