"""The few calls of the Linux kernel that Python has no function for. Runs inside the sandbox: standard library only."""

import ctypes
import os
import platform

# The calls that seccomp, Landlock and namespaces need, by machine; from 424 on, all machines have the same numbers.
_NUMBERS = {
    "x86_64": {"capset": 126, "unshare": 272, "seccomp": 317, "mount": 165},
    "aarch64": {"capset": 91, "unshare": 97, "seccomp": 277, "mount": 40},
}
MACHINE = platform.machine()
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SIGKILL = 9


def is_known_machine() -> bool:
    """Return whether the numbers of this machine's calls are known here."""
    return os.uname().sysname == "Linux" and MACHINE in _NUMBERS and ctypes.sizeof(ctypes.c_void_p) == 8


def call(name: str | int, *arguments: object) -> int:
    """Return what a system call returns.

    Raises:
        OSError: it failed; has its errno.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = name if isinstance(name, int) else _NUMBERS[MACHINE][name]
    # Each as wide as a register: an int that is passed as it is has 32 bits.
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def prctl(option: int, value: int) -> None:
    """Set something of this process.

    Raises:
        OSError: it failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)


def forgo_privileges() -> None:
    """Give up every capability, for good: also root is then an ordinary user, if one that owns root's files."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    version_3, this_process, no_capabilities = 0x20080522, 0, (0,) * 6
    header = (ctypes.c_uint32 * 2)(version_3, this_process)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)(*no_capabilities)))
