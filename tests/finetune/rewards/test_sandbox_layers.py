"""Each layer of the sandbox by itself, so that one that fails is not covered up by the others."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from seeklet.finetune.rewards.sandbox import Layer, Limits, Outcome, find_layers, run_program
from tests.finetune.rewards import hostile

LIMITS = Limits(cpu_s=5, timeout_s=20.0, memory_mib=256)


def run_with(layer: Layer, code: str) -> Outcome:
    if layer not in find_layers():
        pytest.skip(f"this machine offers no {layer}")
    outcome = run_program(code, limits=LIMITS, layers=("limits", layer), required=(layer,))
    assert set(outcome.layers) == {"limits", layer}
    return outcome


def test_without_any_layer_the_attacks_succeed(tmp_path: Path) -> None:
    """So the others' passing says something. Those on processes are left out: they would end this test."""
    file = tmp_path / "precious"
    file.write_text("precious", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attacks = (
            (hostile.CAREFUL_FORK_BOMB, 1),
            (hostile.reach_network(server.getsockname()[1]), 4),
            (hostile.write_outside(str(file)), 12),
        )
        for attack, num_escapes in attacks:
            outcome = run_program(attack, limits=LIMITS, layers=("limits",), required=())
            assert outcome.stdout.count("escaped") >= num_escapes, outcome


def test_seccomp_alone_stops_processes_and_sockets() -> None:
    assert run_with("seccomp", hostile.CAREFUL_FORK_BOMB).stdout == "PermissionError\n" * 5
    with socket.create_server(("127.0.0.1", 0)) as server:
        tried = run_with("seccomp", hostile.reach_network(server.getsockname()[1])).stdout
    assert "escaped" not in tried


def test_seccomp_alone_stops_what_landlock_does_not_watch(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("precious", encoding="utf-8")
    tried = run_with("seccomp", hostile.write_outside(str(file))).stdout.splitlines()
    # Reading it and listing, creating, moving and linking are Landlock's part. These are not: opening for reading with
    # truncation, truncating, and changing mode, times and owner.
    assert [tried[index] for index in (3, 4, 7, 8, 9)] == ["PermissionError"] * 5


def test_landlock_alone_keeps_files(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("precious", encoding="utf-8")
    tried = run_with("landlock", hostile.write_outside(str(file))).stdout.splitlines()
    # All but its mode, times and owner.
    escaped = {line for line in tried if line.startswith("escaped")}
    assert escaped <= {"escaped 7", "escaped 8", "escaped 9"}
    assert file.read_text(encoding="utf-8") == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_namespaces_alone_have_no_network_and_no_other_processes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        outcome = run_with("namespaces", code)
        with pytest.raises(TimeoutError):
            server.accept()
    assert outcome.status == "failed" and "OSError" in outcome.stderr
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        outcome = run_with("namespaces", f"import os\nprint(os.getpid(), os.getppid())\nos.kill({victim.pid}, 9)")
        # The first process of the namespace, and its child.
        assert outcome.stdout == "2 1\n"
        assert "ProcessLookupError" in outcome.stderr
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_namespaces_alone_end_a_whole_tree_of_processes() -> None:
    """Also those that have left the session and lost their parents."""
    name = f"seeklet-tree-{os.getpid()}"
    code = f"""
import os, sys, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(1000)", "{name}"])
        os._exit(0)
time.sleep(0.5)
print(sum(os.waitpid(-1, 0)[1] == 0 for _ in range(5)))
"""
    outcome = run_with("namespaces", code)
    assert (outcome.status, outcome.stdout) == ("finished", "5\n")
    deadline = time.monotonic() + 10
    while any(name in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.05)
