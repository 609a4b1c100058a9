"""Tokens are in nothing that is printed, logged, raised or kept, with every library told to say all it can."""

import subprocess
import sys
from pathlib import Path

import pytest

from seeklet.finetune.publish.hub_errors import hide_secrets
from tests.finetune.publish.uploads import list_files
from tests.hub.accounts import EXPIRED_TOKEN, OTHER_TOKEN, READ_TOKEN, UNKNOWN_TOKEN, WRITE_TOKEN
from tests.hub.client import list_environment
from tests.hub.faults import Fault
from tests.hub.server import Hub

TOKENS = (WRITE_TOKEN, READ_TOKEN, OTHER_TOKEN, EXPIRED_TOKEN, UNKNOWN_TOKEN)
SCRIPT = """
import logging, sys, traceback
from pathlib import Path
logging.basicConfig(level=logging.DEBUG)
from huggingface_hub import constants
from seeklet.finetune.publish.upload import upload
from seeklet.finetune.publish.verify import verify
folder, files, tokens = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
for has_xet in (True, False):
    constants.HF_HUB_DISABLE_XET = not has_xet
    for token in (None, *tokens):
        name = f"alice/nano-{has_xet}"
        try:
            print(upload(folder, name, files, token=token, part_bytes=5_000_000))
            print(verify(folder, name, files, token=token))
        except Exception as error:
            traceback.print_exc()
            print(error, repr(error), error.__cause__, repr(error.__context__))
    print(f"done {has_xet}")
"""


@pytest.mark.slow
def test_no_token_is_ever_said(hub: Hub, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    variables = {
        "HF_DEBUG": "1",
        "HF_HUB_VERBOSITY": "debug",
        "RUST_LOG": "trace",
        "HF_XET_LOG_LEVEL": "trace",
        "OMP_NUM_THREADS": "1",
        "PATH": "",
        **list_environment(hub, tmp_path, token=WRITE_TOKEN),
    }
    # A few of what goes wrong on the way, tried again by huggingface_hub, which logs it.
    hub.faults.add(Fault("PUT /_lfs/.*/2$", status=503))
    hub.faults.add(Fault("POST .*/preupload/", status=500))
    hub.faults.add(Fault("POST .*/commit/", status=502))
    command = [sys.executable, "-c", SCRIPT, str(folder), ",".join(list_files(folder)), ",".join(TOKENS)]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
    said = ran.stdout + ran.stderr
    assert "done True" in ran.stdout and "done False" in ran.stdout and ran.stdout.count("Published(") >= 4
    assert "authorization: <TOKEN>" in said and "PublishError" in said
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert any("log" in path.suffix for path in kept)
    said += "".join(path.read_text(errors="replace") for path in kept)
    assert [token for token in TOKENS if token in said] == []
    # Nor do they reach a place where they are of no use: the store of large files.
    assert [token for token in TOKENS if token[:12] in said] == []


def test_secrets_are_hidden() -> None:
    address = "PUT https://store/a?X-Amz-Credential=AK&X-Amz-Signature=abc of Bearer abc.def"
    assert hide_secrets(f"{WRITE_TOKEN}: {address}") == "hf_…: PUT https://store/a?… of hf_…"
