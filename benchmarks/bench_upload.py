"""What an upload that is killed sends again, and what the repository shows: python -m benchmarks.bench_upload.

300 MB in three shards to a Hub on this machine, killed with SIGKILL at random moments over each way that the Hub takes
large files, each time begun anew and then run again to its end. Sent again is what had arrived and went once more. Of
it some was on its way when the process was killed: what had arrived of parts that the process had not been told are
kept. What goes beyond that is to be a part at most.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import keep, machine, make_folder
from seeklet.finetune.publish.large_files import NUM_THREADS
from tests.finetune.publish.uploads import UploadProcess, draw_moments, list_sizes, write_shards
from tests.hub.accounts import WRITE_TOKEN
from tests.hub.server import Hub, serve_hub
from tests.hub.xet_routes import count_xet_bytes

NAME = "alice/model"
SHARD_BYTES = 100_000_000
NUM_SHARDS = 3
HEADER = "| way | killed at | arrived, MB | sent then, MB | again, MB | on its way, MB | beyond, parts | shown |"


@dataclass(frozen=True)
class Round:
    """An upload that was killed and run again; bytes, `moment` a share of the whole.

    Attributes:
        was_killed: whether it was still running.
        arrived: what the Hub had been sent by then.
        num_sent: what the second run sent.
        again: how much of what had arrived went once more.
        on_its_way: how much of that was being sent at the kill.
        shown: how many files the repository showed after the kill.
    """

    way: str
    moment: float
    was_killed: bool
    arrived: int
    num_sent: int
    again: int
    on_its_way: int
    shown: int

    def count_beyond(self, part_bytes: int) -> float:
        """Return in parts how much more went again than was on its way."""
        return max(0, self.again - self.on_its_way) / part_bytes

    def describe(self, part_bytes: int) -> str:
        """Return a line of the table."""
        sizes = " | ".join(f"{size / 1e6:.1f}" for size in (self.arrived, self.num_sent, self.again, self.on_its_way))
        when = f"{self.moment:.0%}{'' if self.was_killed else ' (had ended)'}"
        shown = "all" if self.shown else "nothing"
        return f"| {self.way} | {when} | {sizes} | {self.count_beyond(part_bytes):.2f} | {shown} |"


def count_received(hub: Hub, has_xet: bool) -> int:
    """Return how many bytes of large files have arrived."""
    return count_xet_bytes(hub) if has_xet else sum(part.num_bytes for part in hub.journal.parts())


def run_round(root: Path, folder: Path, moment: int, part_bytes: int, has_xet: bool) -> Round:
    """Kill an upload once so many bytes have arrived, and run it again to its end."""
    sizes = list_sizes(folder)
    total = sum(sizes.values())
    with serve_hub(root / "hub", part_bytes=part_bytes) as hub:
        first = UploadProcess(hub, root, folder, NAME, WRITE_TOKEN, has_xet=has_xet, part_bytes=part_bytes)
        was_killed = first.kill_when(lambda: count_received(hub, has_xet) >= moment)
        # What is in the sockets of a killed process still arrives.
        time.sleep(0.5)
        arrived = count_received(hub, has_xet)
        on_its_way = max(0, arrived - first.num_acknowledged)
        shown = set(hub.repository(NAME).tree()) - {".gitattributes"}
        assert shown in (set(), set(sizes)), f"half a commit: {shown}"
        second = UploadProcess(hub, root, folder, NAME, WRITE_TOKEN, has_xet=has_xet, part_bytes=part_bytes)
        num_sent, _ = second.finish()
        tree = hub.repository(NAME).tree()
        assert {name: tree[name].size for name in sizes} == sizes
    again = max(0, num_sent - max(0, total - arrived))
    way = "Xet" if has_xet else "LFS"
    return Round(way, moment / total, was_killed, arrived, num_sent, again, on_its_way, len(shown))


def run_rounds(num_kills: int, ways: list[bool], part_bytes: int) -> list[Round]:
    """Return so many rounds over each way, printed as they end."""
    done = []
    print(f"{HEADER}\n|{'---|' * (HEADER.count('|') - 1)}", flush=True)
    with tempfile.TemporaryDirectory() as below:
        folder = Path(below) / "model"
        write_shards(folder, num_shards=NUM_SHARDS, shard_bytes=SHARD_BYTES)
        for has_xet in ways:
            for moment in draw_moments(NUM_SHARDS * SHARD_BYTES, num_kills, seed=3):
                with tempfile.TemporaryDirectory() as root:
                    done.append(run_round(Path(root), folder, moment, part_bytes, has_xet))
                print(done[-1].describe(part_bytes), flush=True)
    return done


def main() -> None:
    """Measure, print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="for each way")
    parser.add_argument("--way", choices=("lfs", "xet", "both"), default="both")
    parser.add_argument("--part-mb", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the result files")
    arguments = parser.parse_args()
    make_folder(parser, arguments.out)
    part_bytes = int(arguments.part_mb * 1e6)
    ways = {"lfs": [False], "xet": [True], "both": [False, True]}[arguments.way]
    rounds = run_rounds(arguments.kills, ways, part_bytes)
    size = f"{NUM_SHARDS * SHARD_BYTES / 1e6:.0f} MB in parts of {arguments.part_mb:g} MB, {NUM_THREADS} at a time"
    lines = [f"{size}, killed with SIGKILL and run again:", "", HEADER, f"|{'---|' * (HEADER.count('|') - 1)}"]
    lines += [each.describe(part_bytes) for each in rounds]
    ratios = {
        f"parts again beyond what was on its way, most, {way}": round(
            max(each.count_beyond(part_bytes) for each in rounds if each.way == way), 2
        )
        for way in {each.way for each in rounds}
    }
    keep(arguments.out, "upload", machine(), lines, ratios)


if __name__ == "__main__":
    main()
