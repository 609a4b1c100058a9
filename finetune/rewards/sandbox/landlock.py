"""Landlock: which files this process can reach. Runs inside the sandbox: standard library only."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable

from .kernel import call

# From 424 on, numbers are the same on all machines.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
# Rights on files, by the version that brought them: all of the first, then renaming, truncating, controlling devices.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: 1 << 15}
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15
# Binding and connecting over TCP (4); then sockets of no file, and signals to processes outside (6).
_NETWORK, _SCOPES = (4, 0b11), (6, 0b11)


def find_version() -> int:
    """Return the version of Landlock that the kernel has, from 1 on; 0 for none."""
    try:
        return call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


def restrict_files(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Leave this process only what lies in these folders and files, for good; those that don't exist are left out.

    In the writable ones it may do what it likes. Needs `no_new_privs` to be set.

    Raises:
        OSError: the kernel has no Landlock, or does not allow it.
    """
    version = find_version()
    handled = sum(rights for since, rights in _FILE_RIGHTS.items() if since <= version)
    attributes = struct.pack("=QQQ", handled, _at(_NETWORK, version), _at(_SCOPES, version))
    # Each version knows the fields up to its own.
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = call(_CREATE_RULESET, ctypes.create_string_buffer(attributes[:size], size), size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, handled & (_EXECUTE | _READ_FILE | _READ_DIR))
        for path in writable:
            _allow(ruleset, path, handled)
        call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _at(since_and_bits: tuple[int, int], version: int) -> int:
    since, bits = since_and_bits
    return bits if version >= since else 0


def _allow(ruleset: int, path: str, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not os.path.isdir(path):
                rights &= _ON_FILES
            rule = struct.pack("=Qi", rights, folder)
            call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
        finally:
            os.close(folder)
