"""What an upload that is killed sends again, and what the repository shows: python -m benchmarks.bench_upload.

300 MB in three shards to a Hub on this machine, killed with SIGKILL at ten random moments over each way that the Hub
takes large files, each time begun anew and then run again to its end. Sent again is what the Hub had, or was being
sent, and was sent once more; at most NUM_THREADS parts are on their way at a time.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.report import machine
from seeklet.finetune.publish.large_files import NUM_THREADS
from tests.finetune.publish.uploads import UploadProcess, draw_moments, list_sizes, write_shards
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.server import Hub, serve_hub
from tests.hub.xet_routes import count_xet_bytes

NAME = "alice/model"
SHARD_BYTES = 100_000_000
NUM_SHARDS = 3


def count_received(hub: Hub, has_xet: bool) -> int:
    """Return how many bytes of large files have arrived."""
    return count_xet_bytes(hub) if has_xet else sum(part.num_bytes for part in hub.journal.parts())


def run_round(root: Path, folder: Path, moment: int, part_bytes: int, has_xet: bool) -> str:
    """Kill an upload once so many bytes have arrived, run it again, and return a line of the table."""
    sizes = list_sizes(folder)
    total = sum(sizes.values())
    with serve_hub(root / "hub", part_bytes=part_bytes) as hub:
        first = UploadProcess(hub, root, folder, NAME, WRITE_TOKEN, has_xet=has_xet, part_bytes=part_bytes)
        was_killed = first.kill_when(lambda: count_received(hub, has_xet) >= moment)
        # What is in the sockets of a killed process still arrives.
        time.sleep(0.5)
        arrived = count_received(hub, has_xet)
        shown = set(hub.repository(NAME).tree()) - {".gitattributes"}
        assert shown in (set(), set(sizes)), f"half a commit: {shown}"
        second = UploadProcess(hub, root, folder, NAME, WRITE_TOKEN, has_xet=has_xet, part_bytes=part_bytes)
        num_sent, _ = second.finish()
        tree = hub.repository(NAME).tree()
        assert {name: tree[name].size for name in sizes} == sizes
    again = max(0, num_sent - max(0, total - arrived))
    beyond = max(0, again - NUM_THREADS * part_bytes) / part_bytes
    way, shows = "Xet" if has_xet else "LFS", "all" if shown else "nothing"
    return (
        f"{way:5}{moment / total:8.0%}{was_killed!s:>8}{arrived / 1e6:10.1f}{num_sent / 1e6:10.1f}"
        f"{again / 1e6:10.1f}{again / part_bytes:8.2f}{beyond:8.2f}{shows:>9}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="for each way")
    parser.add_argument("--way", choices=("lfs", "xet", "both"), default="both")
    parser.add_argument("--part-mb", type=float, default=8.0)
    arguments = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{NUM_SHARDS * SHARD_BYTES / 1e6:.0f} MB, parts of {arguments.part_mb:g} MB, {NUM_THREADS} at a time; MB:")
    print("way        at  killed   arrived     rerun     again   parts  beyond    shown")
    with tempfile.TemporaryDirectory() as below:
        folder = Path(below) / "model"
        write_shards(folder, num_shards=NUM_SHARDS, shard_bytes=SHARD_BYTES)
        for has_xet in {"lfs": [False], "xet": [True], "both": [False, True]}[arguments.way]:
            moments = draw_moments(NUM_SHARDS * SHARD_BYTES, arguments.kills, seed=3)
            for moment in moments:
                with tempfile.TemporaryDirectory() as root:
                    line = run_round(Path(root), folder, moment, int(arguments.part_mb * 1e6), has_xet)
                    print(line, flush=True)


if __name__ == "__main__":
    main()
