"""Running Python code that nobody has read, such as a model's, in a process that can do little harm."""

import errno
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Literal

from .process import installed_paths, python_command, python_folders

Layer = Literal["limits", "seccomp", "landlock", "namespaces"]
ALL_LAYERS: tuple[Layer, ...] = ("limits", "seccomp", "landlock", "namespaces")
# Without these, code could start processes and reach the network, or read and write files.
REQUIRED_LAYERS: tuple[Layer, ...] = ("limits", "seccomp", "landlock")
Status = Literal["finished", "failed", "timeout", "memory", "output", "killed", "refused"]
MIB = 2**20
# How often the folder is measured where it does not lie in memory.
_WATCH_S = 0.05


@dataclass(frozen=True)
class Limits:
    """What code may use: seconds of a CPU and by the clock, memory, bytes of a file or of output, and of all files."""

    cpu_s: int = 5
    timeout_s: float = 10.0
    memory_mib: int = 512
    file_mib: int = 4
    folder_mib: int = 16
    num_files: int = 256


@dataclass(frozen=True)
class Outcome:
    """How code ended, what it wrote (its errors too), what came of each test, and the layers that held it."""

    status: Status
    stdout: str
    stderr: str
    results: list[dict[str, Any]] | None
    layers: tuple[str, ...]
    seconds: float


def run_program(
    code: str,
    stdin: str = "",
    limits: Limits | None = None,
    *,
    packages: bool = False,
    layers: Sequence[Layer] = ALL_LAYERS,
    required: Sequence[Layer] = REQUIRED_LAYERS,
) -> Outcome:
    """Return how a program ended that was given `stdin`.

    Args:
        code: Python.
        stdin: what it can read.
        limits: what it may use; the defaults of `Limits`.
        packages: whether it can import what is installed, and not Python's own library alone.
        layers: of protection, to be taken where the kernel and the container offer them.
        required: those without which nothing is run, and the outcome is "refused".
    """
    return _run({"kind": "script", "code": code}, stdin, limits or Limits(), packages, layers, required)


def run_tests(
    code: str,
    kind: Literal["calls", "asserts"],
    tests: Sequence[str],
    limits: Limits | None = None,
    *,
    packages: bool = False,
    layers: Sequence[Layer] = ALL_LAYERS,
    required: Sequence[Layer] = REQUIRED_LAYERS,
) -> Outcome:
    """Return the outcome of tests in the module that `code` makes: expressions to be called, or statements that assert.

    Of a call, the result is `{"value": …}` as JSON has it, or `{"text": …}` with its representation; of an assertion
    `{"value": true}`; of one that raised `{"error": …}`. There are none where the code ended the process. See
    `run_program` for the arguments.
    """
    job = {"kind": kind, "code": code, "tests": list(tests)}
    return _run(job, "", limits or Limits(), packages, layers, required)


@lru_cache(maxsize=1)
def find_layers() -> tuple[str, ...]:
    """Return the layers of protection that this machine offers to this process."""
    if not sys.platform.startswith("linux"):
        return ()
    return _run({"kind": "probe"}, "", Limits(), False, ALL_LAYERS, ()).layers


def _run(
    job: dict[str, Any],
    stdin: str,
    limits: Limits,
    packages: bool,
    layers: Sequence[Layer],
    required: Sequence[Layer],
) -> Outcome:
    folder = os.path.realpath(tempfile.mkdtemp(prefix="sandbox-"))
    token = secrets.token_hex(16)
    job |= {
        "token": token,
        "folder": folder,
        "layers": list(layers),
        "required": list(required),
        "readable": python_folders() + (installed_paths() if packages else []),
        "import_path": installed_paths() if packages else [],
        "limits": {
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_mib * MIB,
            "file_bytes": limits.file_mib * MIB,
            "folder_bytes": limits.folder_mib * MIB,
            "num_files": limits.num_files,
        },
    }
    try:
        with (
            _file(json.dumps(job)) as job_file,
            _file(stdin) as input_file,
            _file("") as output,
            _file("") as errors,
            _file("") as report,
        ):
            begun = time.monotonic()
            process = subprocess.Popen(
                python_command("sandbox.inside", str(job_file.fileno()), str(report.fileno())),
                stdin=input_file,
                stdout=output,
                stderr=errors,
                pass_fds=(job_file.fileno(), report.fileno()),
                env=_environment(folder),
                cwd=folder,
                start_new_session=True,
            )
            stopped = _wait(process, folder, limits, report)
            seconds = time.monotonic() - begun
            return _read_outcome(process.returncode, stopped, output, errors, report, token, seconds)
    finally:
        _remove(folder)


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of the process: nothing of this one's, which may hold tokens."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", **threads}


def _wait(process: subprocess.Popen[bytes], folder: str, limits: Limits, report: IO[bytes]) -> Status | None:
    """Wait for the process to end, or end it; return why, where it was ended."""
    deadline = time.monotonic() + limits.timeout_s
    try:
        while True:
            try:
                process.wait(_WATCH_S)
                return None
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() > deadline:
                return "timeout"
            if _is_over(folder, limits):
                return "output"
    finally:
        _kill(process, report)


def _kill(process: subprocess.Popen[bytes], report: IO[bytes]) -> None:
    """End the process and all that it has started; also where this one was interrupted meanwhile."""
    if process.poll() is not None:
        return
    if "namespaces" in _read_report(report)[0]:
        # Ends the first process of the namespace, the kernel the rest, and it takes note of that before it ends.
        process.terminate()
        try:
            process.wait(2.0)
            return
        except subprocess.TimeoutExpired:
            pass
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _is_over(folder: str, limits: Limits) -> bool:
    """Return whether the files in a folder are too many or too large; those in memory are not seen, and limited."""
    num_files = num_bytes = 0
    errors: list[OSError] = []
    for path, folders, files in os.walk(folder, onerror=errors.append):
        num_files += len(folders) + len(files)
        for name in files:
            try:
                num_bytes += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
        if num_files > limits.num_files or num_bytes > limits.folder_mib * MIB:
            return True
    # Deeper than a path can say.
    return any(error.errno == errno.ENAMETOOLONG for error in errors)


def _read_outcome(
    code: int,
    stopped: Status | None,
    output: IO[bytes],
    errors: IO[bytes],
    report: IO[bytes],
    token: str,
    seconds: float,
) -> Outcome:
    stdout, stderr = _read(output), _read(errors)
    layers, results = _read_report(report, token)
    number = -code if code < 0 else code - 128 if code > 128 else 0
    status: Status
    if stopped:
        status = stopped
    elif number == signal.SIGXCPU:
        status = "timeout"
    elif number == signal.SIGXFSZ:
        status = "output"
    elif number:
        status = "killed"
    elif code == 0:
        status = "finished"
    elif stderr.startswith("not run: without"):
        status = "refused"
    else:
        status = "memory" if "MemoryError" in stderr[-200:] else "failed"
    return Outcome(status, stdout, stderr, results, layers, seconds)


def _read_report(report: IO[bytes], token: str = "") -> tuple[tuple[str, ...], list[dict[str, Any]] | None]:
    """Return the layers and, where the line that has the token is there, the results."""
    layers, results = (), None
    for index, line in enumerate(_read(report).splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if index == 0:
            layers = tuple(entry["layers"])
        elif isinstance(entry, dict) and entry.get("token") == token:
            results = entry["results"]
    return layers, results


def _file(text: str) -> IO[bytes]:
    """Return a file without a name: unlike a pipe, nobody waits for its reader."""
    # The caller closes it.
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(text.encode("utf-8", errors="surrogatepass"))
    file.seek(0)
    return file


def _read(file: IO[bytes]) -> str:
    # Not by the position in the file, which the process shares.
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", errors="replace")


def _remove(folder: str) -> None:
    try:
        # Empty, unless the sandbox had no folder in memory.
        os.rmdir(folder)
    except OSError:
        # By a program that follows folders in folders to any depth, which Python's function does not.
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
