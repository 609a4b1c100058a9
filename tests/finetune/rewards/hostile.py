"""Programs that do what a sandbox must survive; each prints "escaped" where it got away with something."""

import os

FORK_BOMB = """
import os
while True:
    os.fork()
"""
CAREFUL_FORK_BOMB = """
import ctypes, os, subprocess, sys, multiprocessing, threading
tried = [
    os.fork,
    lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}),
    lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    lambda: os.execv(sys.executable, [sys.executable, "-c", "print('escaped')"]),
    os.setsid,
]
for each in tried:
    try:
        each()
        print("escaped")
    except OSError as error:
        print(type(error).__name__)
"""
LOOP = "while True:\n    pass"
SLEEP = "import time\ntime.sleep(1000)"
DEAF = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU, signal.SIGALRM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        time.sleep(1000)
    except BaseException:
        pass
"""
MEMORY_HOG = "held = []\nwhile True:\n    held.append(bytearray(10_000_000))"
MAPPED_MEMORY_HOG = """
import mmap
held = []
while True:
    held.append(mmap.mmap(-1, 10_000_000))
    held[-1].write(b"x" * 10_000_000)
"""
THREAD_BOMB = """
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
"""
STACK_OVERFLOW = """
import sys
sys.setrecursionlimit(10**8)
class Endless:
    def __repr__(self):
        return repr(self)
repr(Endless())
"""
OUTPUT_FLOOD = "while True:\n    print('x' * 1000)"
LARGE_FILE = "with open('large', 'wb') as file:\n    while True:\n        file.write(b'x' * 1_000_000)"
MANY_FILES = """
for index in range(1_000_000):
    with open(f"file{index}", "wb") as file:
        file.write(b"x" * 1_000_000)
"""
DEEP_FOLDERS = """
import os
while True:
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
"""
CRASH = "import ctypes\nctypes.string_at(0)"


def write_outside(path: str) -> str:
    """Return a program that tries to write, change, move, link to and remove a file that is there."""
    return f"""
import os
path = {path!r}
folder = os.path.dirname(path)
tried = [
    lambda: open(path, "w"),
    lambda: open(path, "a"),
    lambda: open(path, "r"),
    lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
    lambda: os.truncate(path, 0),
    lambda: open(os.path.join(folder, "new"), "w"),
    lambda: os.mkdir(os.path.join(folder, "newer")),
    lambda: os.chmod(path, 0o777),
    lambda: os.utime(path, (0, 0)),
    lambda: os.chown(path, os.getuid(), -1),
    lambda: os.link(path, "mine"),
    lambda: os.symlink("/", os.path.join(folder, "link")),
    lambda: os.listdir(folder),
    lambda: os.rename(path, "moved"),
    lambda: os.remove(path),
]
os.symlink(path, "shortcut")
tried.append(lambda: open("shortcut", "w"))
for index, each in enumerate(tried):
    try:
        each()
        print("escaped", index)
    except OSError as error:
        print(type(error).__name__)
"""


def reach_network(port: int) -> str:
    """Return a program that tries to reach a server on this machine's port, over several kinds of sockets."""
    return f"""
import asyncio, socket, urllib.request
tried = [
    lambda: socket.create_connection(("127.0.0.1", {port}), 5),
    lambda: socket.create_connection(("::1", {port}), 5),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port})),
    lambda: socket.socket(socket.AF_UNIX).connect("\\0seeklet-test-{port}"),
    lambda: socket.socket(socket.AF_INET).bind(("127.0.0.1", 0)),
    lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    lambda: urllib.request.urlopen("http://127.0.0.1:{port}/", timeout=5),
    lambda: socket.getaddrinfo("example.org", 80),
]
for index, each in enumerate(tried):
    try:
        each()
        print("escaped", index)
    except OSError as error:
        print(type(error).__name__)
"""


def harm_processes(pid: int = os.getpid()) -> str:
    """Return a program that tries to end, stop, limit, trace and read another process, and to send it a signal."""
    return f"""
import ctypes, fcntl, os, resource, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")
def own_by_socket():
    one, other = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETOWN, {pid})
tried = [
    lambda: os.kill({pid}, signal.SIGTERM),
    lambda: os.kill(os.getppid(), signal.SIGKILL),
    lambda: os.killpg(0, signal.SIGTERM),
    lambda: os.kill(-1, signal.SIGKILL),
    lambda: resource.prlimit({pid}, resource.RLIMIT_NOFILE, (10, 10)),
    lambda: os.setpriority(os.PRIO_PROCESS, {pid}, 19),
    lambda: os.sched_setaffinity({pid}, [0]),
    lambda: open("/proc/{pid}/environ"),
    lambda: open("/proc/{pid}/mem", "wb"),
    lambda: os.listdir("/proc"),
    lambda: os.pidfd_open({pid}),
    lambda: signal.pidfd_send_signal(0, signal.SIGTERM),
    own_by_socket,
    # io_uring_setup, and a call that no kernel has yet.
    lambda: call(425, 8, 0),
    lambda: call(999),
]
for index, each in enumerate(tried):
    try:
        each()
        print("escaped", index)
    except OSError as error:
        print(type(error).__name__)
"""
