"""Namespaces of its own: no network, no other processes. Runs inside the sandbox: standard library only."""

import contextlib
import os
import signal
from pathlib import Path

from .kernel import call, die_with_parent

_NEW_MOUNTS, _NEW_HOST_NAME, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_NO_SET_USER, _NO_DEVICES, _NO_EXECUTION = 2, 4, 8
# The numbers of nobody, which the process sees itself have.
_NOBODY = 65534


def enter_namespaces() -> None:
    """Move to a new user, network, mount, process, IPC and host name namespace; the next fork makes its first process.

    Raises:
        OSError: the kernel or the container does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    everything = _NEW_MOUNTS | _NEW_HOST_NAME | _NEW_IPC | _NEW_PROCESSES | _NEW_NETWORK
    call("unshare", _NEW_USER | everything)
    with contextlib.suppress(OSError):
        # Needed before the groups of a user without privileges.
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1", encoding="ascii")


def mount_memory_on(folder: str, num_bytes: int, num_files: int) -> None:
    """Lay a file system in memory over a folder: it holds so much and no more, and goes with the namespace.

    Raises:
        OSError: it is not allowed.
    """
    options = f"size={num_bytes},nr_inodes={num_files},mode=0700".encode()
    call("mount", b"sandbox", folder.encode(), b"tmpfs", _NO_SET_USER | _NO_DEVICES | _NO_EXECUTION, options)


def fork_into_namespace() -> None:
    """Go on in a grandchild, in the new process namespace. The two before it wait for it, and end with its status.

    The child is the namespace's first process: when it is killed, the kernel kills everything in there. The process
    that calls this does so when it is told to end, and then reaps it: whoever adopts orphans might not.
    """
    for _ in range(2):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            die_with_parent()
            continue
        signal.signal(signal.SIGTERM, lambda *_, child=child: os.kill(child, signal.SIGKILL))
        status = os.waitpid(child, 0)[1]
        os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
