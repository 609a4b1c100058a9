"""bitsandbytes as the command line imports it: when used, no word, no question to the Hub, `kernels` as before."""

import os
import subprocess
import sys

# On a CPU with AVX512-BF16 it asks and warns without the first of these lines.
PROGRAM = """
import seeklet_cli.quiet_bitsandbytes as quiet; quiet.keep_bitsandbytes_quiet()
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append(event) if event.startswith("socket.") else None)
import bitsandbytes
assert "bitsandbytes.functional" not in sys.modules
import bitsandbytes.functional
assert "kernels" not in sys.modules
print([event for event in asked if event in ("socket.getaddrinfo", "socket.connect")], bitsandbytes.__version__)
"""


def test_the_hub_is_not_asked() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    process = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert process.stderr == "" and process.stdout.startswith("[] ")
