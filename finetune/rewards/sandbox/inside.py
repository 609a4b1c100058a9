"""What runs in the new process: it locks itself in, then runs the code. Standard library only; see `run`."""

import contextlib
import json
import os
import resource
import sys
import traceback
from typing import IO, Any

from .kernel import die_with_parent, forgo_privileges, is_known_machine
from .landlock import restrict_files
from .namespaces import enter_namespaces, fork_into_namespace, mount_memory_on
from .seccomp import restrict_calls

# What a Python program reads of a machine, besides Python itself. Neither other users' files nor /proc.
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")
SHOWN_CHARACTERS = 300


def main() -> None:
    """Carry out the job whose file is open as the number in the first argument; the second one is for the report."""
    job_file, report_file = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(job_file, encoding="utf-8") as file:
        job = json.load(file)
    report = os.fdopen(report_file, "w", encoding="utf-8")
    layers = lock_in(job)
    os.chdir(job["folder"])
    _write(report, {"layers": layers})
    if missing := sorted(set(job["required"]) - layers.keys()):
        raise SystemExit(f"not run: without {', '.join(missing)}")
    if job["kind"] == "probe":
        return
    del sys.argv[1:]
    sys.path += job["import_path"]
    if job["kind"] == "script":
        report.close()
        run_script(job["code"])
    else:
        results = run_tests(job["code"], job["kind"], job["tests"])
        _write(report, {"token": job["token"], "results": results})
        # Threads and exit handlers of the code have no more to say.
        os._exit(0)


def lock_in(job: dict[str, Any]) -> dict[str, str]:
    """Take every layer of protection that is wanted and to be had, for good; return them, with a note each.

    A layer that the kernel or the container does not offer is left out: which ones must be there, the caller says.
    """
    layers: dict[str, str] = {}
    limits, wanted = job["limits"], job["layers"]
    known = is_known_machine()
    if known:
        die_with_parent()
    if known and "namespaces" in wanted:
        with contextlib.suppress(OSError):
            enter_namespaces()
            layers["namespaces"] = "user, network, processes"
            die_with_parent()
            fork_into_namespace()
            with contextlib.suppress(OSError):
                mount_memory_on(job["folder"], limits["folder_bytes"], limits["num_files"])
                layers["namespaces"] += ", files in memory"
    set_limits(limits, "seccomp" not in wanted or not known)
    layers["limits"] = "CPU time, memory, file size"
    if known:
        forgo_privileges()
        die_with_parent()
        if "landlock" in wanted:
            with contextlib.suppress(OSError):
                restrict_files((*SYSTEM, *job["readable"]), (job["folder"], "/dev/null"))
                layers["landlock"] = "files"
        if "seccomp" in wanted:
            with contextlib.suppress(OSError):
                restrict_calls()
                layers["seccomp"] = "processes, network, signals"
    return layers


def set_limits(limits: dict[str, Any], processes: bool) -> None:
    """Set the limits of this process that the kernel watches; that of processes counts all of a user's."""
    seconds = limits["cpu_s"]
    for what, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        *(((resource.RLIMIT_NPROC, 64),) if processes else ()),
    ):
        soft, hard = value, resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        # One second more kills what handles the signal of the first.
        most = soft + 1 if what == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else soft
        resource.setrlimit(what, (soft, most))


def run_script(code: str) -> None:
    """Run code as a program: with this process's input and output."""
    exec(compile(code, "answer.py", "exec"), {"__name__": "__main__"})


def run_tests(code: str, kind: str, tests: list[str]) -> list[dict[str, Any]]:
    """Return what came of each test after running code: of calls their value, of others whether they passed.

    Each is `{"value": …}`, `{"text": …}` where the value is none that JSON has, or `{"error": …}`.
    """
    space: dict[str, Any] = {"__name__": "answer"}
    try:
        exec(compile(code, "answer.py", "exec"), space)
    except BaseException as error:
        return [{"error": _told(error)}] * len(tests)
    results = []
    for test in tests:
        try:
            if kind == "calls":
                results.append(_as_json(eval(compile(test, "test", "eval"), space)))
            else:
                exec(compile(test, "test", "exec"), space)
                results.append({"value": True})
        except BaseException as error:
            results.append({"error": _told(error)})
    return results


def _as_json(value: Any) -> dict[str, Any]:
    try:
        return {"value": json.loads(json.dumps(value, allow_nan=False))}
    except (TypeError, ValueError, RecursionError):
        return {"text": repr(value)}


def _told(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(error)).strip()[:SHOWN_CHARACTERS]
    # An exception of the code's own may raise when it is shown.
    except BaseException:
        return type(error).__name__


def _write(report: IO[str], entry: dict[str, Any]) -> None:
    report.write(json.dumps(entry) + "\n")
    report.flush()
