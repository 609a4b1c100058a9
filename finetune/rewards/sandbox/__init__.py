"""A sandbox for Python code that nobody has read, such as a model's: a process of its own that locks itself in.

What holds it, each where the kernel and the container offer it; it needs no privileges, and works for root too:

- limits (`setrlimit`): CPU time, memory, the size of a file, open files. By the clock, the process is killed.
- seccomp: no new process or program (so no fork bomb), no sockets of any family, no signals to or limits of other
  processes, no modes, owners or times of files, no mounts, tracing, io_uring, shared memory, or calls newer than known.
- Landlock: of files, its own temporary folder; to read, Python, system libraries and /dev/urandom. No /proc, no home
  folders, no data, no tokens. The environment is empty, too.
- namespaces, where users may make them: no network at all, no other processes to be seen, the folder in memory with a
  limit of its own, and the kernel kills all that is left.

The first three are required unless the caller says otherwise, and nothing is run without them.

What it does not protect from: faults of the kernel, which is the host's (a virtual machine is what helps there);
reading what lies in Python's folders, the system's libraries and /usr; learning from `stat` which files exist;
guessing through the use of caches and time; heat, and the load on CPUs and memory up to the limits, times the number
of threads that score. Without namespaces, files may exceed the folder's limit for the twentieth of a second between
two looks. Where seccomp is done without, code may leave processes behind, unless there are namespaces. On processors
other than x86_64 and aarch64 only limits are left, on systems other than Linux nothing, and nothing is run there. On
aarch64 this has not been tried. Code that runs beside assertions can look for them: see `code`.
"""

from .run import ALL_LAYERS, REQUIRED_LAYERS, Layer, Limits, Outcome, find_layers, run_program, run_tests

__all__ = [
    "ALL_LAYERS",
    "REQUIRED_LAYERS",
    "Layer",
    "Limits",
    "Outcome",
    "find_layers",
    "run_program",
    "run_tests",
]
