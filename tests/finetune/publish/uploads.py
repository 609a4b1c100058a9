"""Folders to publish, and uploads in processes of their own that can be killed."""

import io
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import save_file

from seeklet.finetune.errors import PublishError
from seeklet.finetune.publish.transfer_progress import Transfer
from seeklet.finetune.publish.upload import upload
from tests.hub.server import Hub

# Children of a server that has imported the models once: each is there in milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.finetune.publish.uploads"])
_END_S = 120.0


def write_shards(folder: Path, *, num_shards: int, shard_bytes: int) -> None:
    """Write shards of random numbers, which no store can make smaller, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(7)
    for index in range(num_shards):
        name = f"model-{index + 1:05}-of-{num_shards:05}.safetensors"
        content = torch.randint(0, 256, (shard_bytes,), dtype=torch.uint8, generator=generator)
        save_file({f"layer.{index}": content}, str(folder / name))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def list_sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in list_files(folder)}


def _run(
    hub_endpoint: str,
    home: str,
    has_xet: bool,
    folder: str,
    repo_id: str,
    token: str,
    part_bytes: int,
    is_pull: bool,
    max_file_bytes: int | None,
    said: Connection,
    acknowledged: Any,
) -> None:
    """Publish a folder, from a process that was turned to a hub; bytes that the Hub has answered for are counted."""
    count = Transfer.add

    def add(self: Transfer, num_bytes: int, *, is_sent: bool = True) -> None:
        count(self, num_bytes, is_sent=is_sent)
        with acknowledged.get_lock():
            acknowledged.value += num_bytes

    Transfer.add = add
    constants.ENDPOINT = hub_endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{hub_endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    constants.HF_HUB_OFFLINE = False
    constants.HF_HOME = home
    constants.HF_HUB_DISABLE_XET = not has_xet
    os.environ["HF_XET_CACHE"] = f"{home}/xet"
    if max_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    said.send("begun")
    try:
        done = upload(
            folder,
            repo_id,
            list_files(Path(folder)),
            token=token,
            part_bytes=part_bytes,
            create_pr=is_pull,
            console=Console(file=io.StringIO()),
        )
    except PublishError as problem:
        said.send(str(problem))
        return
    said.send((done.num_bytes_sent, done.num_bytes_kept))


class UploadProcess:
    """An upload in a process of its own."""

    def __init__(
        self,
        hub: Hub,
        home: Path,
        folder: Path,
        repo_id: str,
        token: str,
        *,
        has_xet: bool,
        part_bytes: int,
        is_pull: bool = False,
        max_file_bytes: int | None = None,
    ) -> None:
        self._said, theirs = _CONTEXT.Pipe(duplex=False)
        self._acknowledged = _CONTEXT.Value("q", 0)
        arguments: Sequence[object] = (
            hub.endpoint,
            str(home / "home"),
            has_xet,
            str(folder),
            repo_id,
            token,
            part_bytes,
            is_pull,
            max_file_bytes,
            theirs,
            self._acknowledged,
        )
        self._process = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        assert self._said.recv() == "begun"

    @property
    def num_acknowledged(self) -> int:
        """How many bytes were there or arrived, as far as the process was told."""
        # Without its lock, which a killed process may have held.
        return self._acknowledged.get_obj().value

    def kill_when(self, is_time: Callable[[], bool]) -> bool:
        """Kill the process once it is time, or return false where it ended before."""
        end = time.monotonic() + _END_S
        while not is_time() and self._process.is_alive():
            assert time.monotonic() < end, "the upload neither came so far nor ended"
            time.sleep(0.001)
        was_running = self._process.is_alive()
        if was_running:
            assert self._process.pid
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        return was_running

    def finish(self) -> tuple[int, int]:
        """Wait for the end, and return how many bytes were sent and how many were there."""
        result = self._await_end()
        assert not isinstance(result, str), result
        return result

    def refusal(self) -> str:
        """Wait for the end, and return why nothing was published."""
        result = self._await_end()
        assert isinstance(result, str), result
        return result

    def _await_end(self) -> Any:
        assert self._said.poll(_END_S)
        result = self._said.recv()
        self._process.join()
        assert self._process.exitcode == 0
        return result


def draw_moments(total: int, count: int, seed: int) -> list[int]:
    """Return so many numbers of bytes up to `total` at which uploads are killed."""
    draw = random.Random(seed)
    return sorted(draw.randrange(total) for _ in range(count))
