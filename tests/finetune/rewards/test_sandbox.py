"""What a sandbox must survive: each attack with namespaces and without, as this user and as one without privileges."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from seeklet.finetune.rewards.sandbox import REQUIRED_LAYERS, Layer, Limits, find_layers, run_program, run_tests
from tests.finetune.rewards import hostile

pytestmark = pytest.mark.skipif(
    not set(REQUIRED_LAYERS) <= set(find_layers()), reason="this machine offers no seccomp or no Landlock"
)
SYNTAX_ERROR = 'File "answer.py", line 1\n    1/\n      ^\nSyntaxError: invalid syntax'
SHORT = Limits(cpu_s=1, timeout_s=4.0, memory_mib=256)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["with namespaces", "without namespaces"])
def layers(request: pytest.FixtureRequest) -> Sequence[Layer]:
    """Return the layers to take: with those that containers often forbid, and without."""
    if request.param == "without namespaces":
        return REQUIRED_LAYERS
    if "namespaces" not in find_layers():
        pytest.skip("this machine lets users make no namespaces")
    return (*REQUIRED_LAYERS, "namespaces")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Check that no process of a sandbox outlives its test."""
    yield
    deadline = time.monotonic() + 5
    while left := [process for process in psutil.process_iter(["cmdline"]) if is_sandbox(process)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def is_sandbox(process: psutil.Process) -> bool:
    """Return whether a process runs code for this test, also a dead one that nobody has taken note of."""
    try:
        if "sandbox.inside" in " ".join(process.info["cmdline"] or ()):
            return os.getpid() in [parent.pid for parent in process.parents()] or process.ppid() == 1
    except psutil.NoSuchProcess:
        pass
    return False


def test_a_program_runs(layers: Sequence[Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os\nopen('f', 'w').write(input())\nprint(open('f').read(), os.listdir(), os.environ.get('TOKEN'))"
    monkeypatch.setenv("TOKEN", "secret")
    outcome = run_program(code, "hello", layers=layers)
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("finished", "hello ['f'] None\n", "")
    assert set(outcome.layers) == set(layers)


def test_what_ordinary_code_needs_is_allowed(layers: Sequence[Layer]) -> None:
    code = """
import asyncio, concurrent.futures, datetime, os, random, sqlite3, tempfile, uuid, zoneinfo
async def main():
    await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(3)))
asyncio.run(main())
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(abs, range(-3, 3))) == 9
with tempfile.TemporaryDirectory() as folder:
    os.rename(os.path.join(folder), folder + "x")
    os.rename(folder + "x", folder)
    with sqlite3.connect(os.path.join(folder, "db")) as db:
        assert db.execute("select 1 + 1").fetchone() == (2,)
    db.close()
print(len(uuid.uuid4().hex), random.SystemRandom().random() < 1, datetime.date(2024, 1, 1), os.cpu_count() > 0)
"""
    outcome = run_program(code, layers=layers)
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("finished", "32 True 2024-01-01 True\n", "")


@pytest.mark.parametrize("attack", ["FORK_BOMB", "CAREFUL_FORK_BOMB"])
def test_fork_bombs(attack: str, layers: Sequence[Layer]) -> None:
    outcome = run_program(getattr(hostile, attack), limits=SHORT, layers=layers)
    assert "escaped" not in outcome.stdout
    assert outcome.stdout == "PermissionError\n" * 5 or outcome.stderr.endswith("Operation not permitted\n")


@pytest.mark.parametrize("attack", ["LOOP", "SLEEP", "DEAF"])
def test_endless_programs(attack: str, layers: Sequence[Layer]) -> None:
    begun = time.monotonic()
    outcome = run_program(getattr(hostile, attack), limits=Limits(cpu_s=1, timeout_s=2.5), layers=layers)
    assert outcome.status == "timeout"
    # As long as it was allowed, and some for starting on a busy machine; not the 1,000 seconds it wanted.
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("attack", ["MEMORY_HOG", "MAPPED_MEMORY_HOG", "THREAD_BOMB", "STACK_OVERFLOW", "CRASH"])
def test_memory_hogs_and_crashes(attack: str, layers: Sequence[Layer]) -> None:
    limits = Limits(cpu_s=20, timeout_s=60, memory_mib=256)
    outcome = run_program(getattr(hostile, attack), limits=limits, layers=layers)
    assert outcome.status in ("memory", "failed", "killed")
    if attack.endswith("HOG"):
        assert "Cannot allocate memory" in outcome.stderr or outcome.status == "memory"


@pytest.mark.parametrize("attack", ["OUTPUT_FLOOD", "LARGE_FILE", "MANY_FILES", "DEEP_FOLDERS"])
def test_floods_of_output_and_files(attack: str, layers: Sequence[Layer], tmp_path: Path) -> None:
    limits = Limits(cpu_s=5, timeout_s=30, file_mib=2, folder_mib=4, num_files=64)
    outcome = run_program(getattr(hostile, attack), limits=limits, layers=layers)
    assert outcome.status in ("failed", "output")
    assert len(outcome.stdout) <= 2 * 2**20


def test_files_outside_its_folder(layers: Sequence[Layer], tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("precious", encoding="utf-8")
    before = (file.stat().st_mode, file.stat().st_mtime)
    outcome = run_program(hostile.write_outside(str(file)), limits=SHORT, layers=layers)
    assert outcome.status == "finished", outcome.stderr
    assert "escaped" not in outcome.stdout
    assert len(outcome.stdout.splitlines()) == 16
    assert (file.read_text(encoding="utf-8"), file.stat().st_mode, file.stat().st_mtime) == ("precious", *before)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", str(Path.home()), str(ROOT / "README.md")])
def test_files_that_are_none_of_its_business(path: str, layers: Sequence[Layer]) -> None:
    code = f"import os\nprint(os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())"
    outcome = run_program(code, limits=SHORT, layers=layers)
    assert outcome.status == "failed"
    assert "PermissionError" in outcome.stderr or "FileNotFoundError" in outcome.stderr


def test_network(layers: Sequence[Layer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        port = server.getsockname()[1]
        local.bind(f"\0seeklet-test-{port}")
        local.listen()
        server.settimeout(0.2)
        outcome = run_program(hostile.reach_network(port), limits=SHORT, layers=layers)
        with pytest.raises(TimeoutError):
            server.accept()
    assert outcome.status == "finished", outcome.stderr
    assert "escaped" not in outcome.stdout
    assert len(outcome.stdout.splitlines()) == 8


def test_other_processes(layers: Sequence[Layer]) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        outcome = run_program(hostile.harm_processes(victim.pid), limits=SHORT, layers=layers)
        assert outcome.status == "finished", outcome.stderr
        assert "escaped" not in outcome.stdout
        assert len(outcome.stdout.splitlines()) == 15
        assert victim.poll() is None
        assert victim.pid in psutil.pids()
        assert psutil.Process(victim.pid).nice() == psutil.Process().nice()
    finally:
        victim.kill()
        victim.wait()


def test_it_dies_with_the_process_that_started_it(layers: Sequence[Layer], tmp_path: Path) -> None:
    started = (
        "from seeklet.finetune.rewards.sandbox import Limits, run_program\n"
        f"run_program('import time; time.sleep(1000)', limits=Limits(timeout_s=1000), layers={tuple(layers)!r})\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    trainer = subprocess.Popen([sys.executable, "-c", light_import() + started], env=environment)
    deadline = time.monotonic() + 60
    wanted = 3 if "namespaces" in layers else 1
    while len(children := psutil.Process(trainer.pid).children(recursive=True)) < wanted:
        assert time.monotonic() < deadline and trainer.poll() is None
        time.sleep(0.02)
    # Past its start, so that it has asked for this.
    time.sleep(0.5)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_without_a_required_layer_nothing_runs(tmp_path: Path) -> None:
    outcome = run_program("print('ran')", layers=("limits", "seccomp"))
    assert (outcome.status, outcome.stdout) == ("refused", "")
    outcome = run_program("print('ran')", layers=("limits", "seccomp"), required=("seccomp",))
    assert (outcome.status, outcome.stdout) == ("finished", "ran\n")


def test_results_of_tests() -> None:
    code = "x = 2\ndef twice(y):\n    return 2 * y"
    outcome = run_tests(code, "calls", ["twice(x)", "(1, None)", "{1}", "1/0", "float('nan')"])
    assert outcome.results == [
        {"value": 4},
        {"value": [1, None]},
        {"text": "{1}"},
        {"error": "ZeroDivisionError: division by zero"},
        {"text": "nan"},
    ]
    outcome = run_tests(code, "asserts", ["assert twice(1) == 2", "assert x == 3, 'x is 2'"])
    assert outcome.results == [{"value": True}, {"error": "AssertionError: x is 2"}]
    assert run_tests("1/", "calls", ["1"]).results == [{"error": SYNTAX_ERROR}]


# Of subprocess.run, for a user without privileges.
AS_NOBODY: dict[str, Any] = {
    "user": 65534,
    "group": 65534,
    "extra_groups": [],
    "cwd": "/",
    "env": {},
    "stderr": subprocess.DEVNULL,
}


def light_import() -> str:
    """Return code that lets `seeklet.finetune.rewards.sandbox` be imported without torch, by any Python."""
    return (
        "import sys, types\n"
        f"for name, path in (('seeklet', '.'), ('seeklet.finetune', 'finetune'), "
        f"('seeklet.finetune.rewards', 'finetune/rewards')):\n"
        f"    sys.modules[name] = types.ModuleType(name)\n"
        f"    sys.modules[name].__path__ = [{str(ROOT)!r} + '/' + path]\n"
    )


def find_python_for_nobody() -> str | None:
    """Return a Python that a user without privileges can run, or None."""
    for python in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        check = f"{light_import()}import sys, seeklet.finetune.rewards.sandbox\nassert sys.version_info >= (3, 11)"
        # One in a folder of root's cannot even be started.
        with contextlib.suppress(PermissionError):
            if python and subprocess.run([python, "-B", "-c", check], **AS_NOBODY, check=False).returncode == 0:
                return python
    return None


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests ran as a user without privileges")
def test_a_user_without_privileges_is_as_safe(tmp_path: Path) -> None:
    """All attacks that end by themselves, by a user other than root."""
    python = find_python_for_nobody()
    if python is None:
        pytest.skip("no Python here that a user without privileges can run")
    attacks = [hostile.FORK_BOMB, hostile.CAREFUL_FORK_BOMB, hostile.write_outside("/etc/passwd"), hostile.LARGE_FILE]
    attacks += [hostile.reach_network(9), hostile.harm_processes(os.getpid()), hostile.MEMORY_HOG]
    code = (
        f"{light_import()}import os\nfrom seeklet.finetune.rewards.sandbox import Limits, find_layers, run_program\n"
        f"assert os.getuid() == 65534\nassert {{'limits', 'seccomp', 'landlock'}} <= set(find_layers())\n"
        f"for attack in {attacks!r}:\n"
        f"    for layers in (('limits', 'seccomp', 'landlock'), find_layers()):\n"
        f"        outcome = run_program(attack, limits=Limits(cpu_s=2, memory_mib=256), layers=layers)\n"
        f"        assert 'escaped' not in outcome.stdout, (attack, outcome)\n"
        f"        assert outcome.status in ('finished', 'failed', 'memory'), (attack, outcome)\n"
        f"print(run_program('print(input())', 'safe').stdout)\n"
    )
    # Its errors are shown.
    settings = {**AS_NOBODY, "stderr": None}
    ran = subprocess.run([python, "-B", "-c", code], **settings, check=False, stdout=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stdout) == (0, "safe\n\n")
