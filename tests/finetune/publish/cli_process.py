"""`seeklet` in a process of its own that has imported everything before: each is there in milliseconds."""

import multiprocessing
import os
import resource
import secrets
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from seeklet.finetune import cli
from tests.hub.server import Hub

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.finetune.publish.cli_process", "seeklet.finetune.publish.publish"])
_END_S = 60.0


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code and what it said."""

    code: int
    out: str
    err: str


def _run(settings: dict[str, str], has_xet: bool, max_file_bytes: int | None, arguments: list[str], said: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{name}", os.O_WRONLY), number)
    # Those there are were made for what was there before.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    # What huggingface_hub reads from the environment when it is imported.
    os.environ.update(settings)
    constants.ENDPOINT = settings["HF_ENDPOINT"]
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{constants.ENDPOINT}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    constants.HF_HUB_OFFLINE = settings["HF_HUB_OFFLINE"] == "1"
    constants.HF_HUB_DISABLE_XET = not has_xet
    for name, below in (("HF_HOME", ""), ("HF_XET_CACHE", "/xet"), ("HF_HUB_CACHE", "/hub"), ("HF_TOKEN_PATH", "/t")):
        setattr(constants, name, settings["HF_HOME"] + below)
    os.environ["HF_XET_CACHE"] = settings["HF_HOME"] + "/xet"
    if max_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    # Waiting for a Hub that is told to fail shows nothing.
    time.sleep = lambda seconds: None
    sys.argv = ["seeklet", *arguments]
    cli.main()


def run_cli(
    hub: Hub,
    home: Path,
    *arguments: str | Path,
    token: str | None = None,
    has_xet: bool = False,
    is_offline: bool = False,
    endpoint: str | None = None,
    max_file_bytes: int | None = None,
) -> Ended:
    """Return what came of `seeklet` with these arguments, turned to `hub`, with its caches below `home`."""
    settings = {
        "HF_ENDPOINT": endpoint or hub.endpoint,
        "HF_HUB_OFFLINE": "1" if is_offline else "0",
        "HF_HOME": str(home / "home"),
        **({"HF_TOKEN": token} if token else {}),
    }
    said = home / f"said-{secrets.token_hex(4)}"
    # Pipes, which no limit on the size of files cuts off.
    pipes = [Path(f"{said}.{name}") for name in ("out", "err")]
    for pipe in pipes:
        os.mkfifo(pipe)
    with ThreadPoolExecutor(2) as readers:
        texts = [readers.submit(pipe.read_text) for pipe in pipes]
        process = _CONTEXT.Process(
            target=_run, args=(settings, has_xet, max_file_bytes, [str(each) for each in arguments], str(said))
        )
        process.start()
        process.join(_END_S)
        assert process.exitcode is not None, "did not end"
        return Ended(process.exitcode, *(text.result() for text in texts))
