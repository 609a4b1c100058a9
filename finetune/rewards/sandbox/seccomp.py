"""A filter of calls: no new processes, sockets, signals to others. Runs inside the sandbox: standard library only."""

import ctypes
import errno
import os
import struct

from .kernel import MACHINE, call

# Name → number on x86_64 and on aarch64, where it has one. What is listed is refused.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # New processes and programs.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    # The network, also that within this machine. Pairs of sockets stay, which asyncio needs.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Other processes: their signals, memory, limits and turns.
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "prlimit64": (302, 261),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # What Landlock does not watch: modes, owners, times and attributes of files, and cutting them off by name.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "truncate": (76, 45),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # Memory that outlives the process or that no limit of it counts.
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # The rest of the system, and ways around this filter.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "capset": (126, 91),
    "personality": (135, 92),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "syslog": (103, 116),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
# From 424 on only these are known to be harmless: close_range, faccessat2, epoll_pwait2, futex_waitv, futex_*. Others
# are answered as by a kernel that has none, and the C library does without: clone3, openat2, io_uring and all newer.
_HARMLESS_FROM_424 = (436, 439, 441, 449, 454, 455, 456)
# Number of clone, open, openat, kill, tgkill, fcntl, ioctl: whether these are refused depends on an argument.
_WATCHED = {"x86_64": (56, 2, 257, 62, 234, 72, 16), "aarch64": (220, None, 56, 129, 131, 25, 29)}
# What these two can do with a process or terminal: F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP, TIOCSTI.
_REFUSED_FCNTL, _REFUSED_IOCTL = (8, 10, 15), (0x8901, 0x8902, 0x5412)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD = 0x00010000
_SET_MODE_FILTER = 1
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# Classic BPF: load a word at an offset, and with a mask, jump where equal or at least, return.
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data: the number, the machine, and the low half of each argument.
_NUMBER, _ARCH = 0, 4


def restrict_calls() -> None:
    """Install the filter for this process and its threads, for good. Needs `no_new_privs` to be set.

    Raises:
        OSError: the kernel has no seccomp filters, or does not allow one.
    """
    program = b"".join(_build_program())
    array = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    call("seccomp", _SET_MODE_FILTER, 0, ctypes.byref(Program(len(program) // 8, ctypes.addressof(array))))


def _build_program() -> list[bytes]:
    """Return the instructions: first what is decided by number alone, then by an argument."""
    column = ("x86_64", "aarch64").index(MACHINE)
    refused = [numbers[column] for numbers in _REFUSED.values()]
    clone, open_, openat, kill, tgkill, fcntl, ioctl = _WATCHED[MACHINE]
    steps = [
        _load(_ARCH),
        *_unless_equal_return(_AUDIT_ARCH[MACHINE], _KILL_PROCESS),
        _load(_NUMBER),
        # Programs of 32 bits on x86_64 have numbers of their own up there.
        *_if(_AT_LEAST, 0x40000000, _refuse(errno.ENOSYS)),
    ]
    for number in refused:
        if number is not None:
            steps += _if(_EQUAL, number, _refuse(errno.EPERM))
    for number in _HARMLESS_FROM_424:
        steps += _if(_EQUAL, number, _step(_RETURN, _ALLOW))
    steps += _if(_AT_LEAST, 424, _refuse(errno.ENOSYS))
    # Threads share all limits; anything else that clone makes is a process.
    steps += _when(clone, [_load(_argument(0)), _step(_ANY_BIT, _CLONE_THREAD, 1, 0), _refuse(errno.EPERM)])
    # Landlock before its third version lets files be emptied that are opened for reading.
    for number, position in ((open_, 1), (openat, 2)):
        if number is not None:
            flags = [_load(_argument(position)), _step(_AND, os.O_TRUNC | os.O_ACCMODE)]
            steps += _when(number, [*flags, *_if(_EQUAL, os.O_TRUNC | os.O_RDONLY, _refuse(errno.EPERM))])
    for number in (kill, tgkill):
        own = [_load(_argument(0)), _step(_EQUAL, os.getpid(), 1, 0), _refuse(errno.EPERM)]
        steps += _when(number, own)
    for number, commands in ((fcntl, _REFUSED_FCNTL), (ioctl, _REFUSED_IOCTL)):
        checks = [step for command in commands for step in _if(_EQUAL, command, _refuse(errno.EPERM))]
        steps += _when(number, [_load(_argument(1)), *checks])
    return [*steps, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _argument(position: int) -> int:
    return 16 + 8 * position


def _if(comparison: int, value: int, then: bytes) -> list[bytes]:
    return [_step(comparison, value, 0, 1), then]


def _unless_equal_return(value: int, result: int) -> list[bytes]:
    return [_step(_EQUAL, value, 1, 0), _step(_RETURN, result)]


def _when(number: int | None, steps: list[bytes]) -> list[bytes]:
    """Return steps for one call, after which it is allowed; the number must be loaded, and is so again for others."""
    if number is None:
        return []
    body = [*steps, _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, 0, len(body)), *body]
