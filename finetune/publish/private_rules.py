"""Rules for what gives away the machine or the people behind a model: paths, host and user names, addresses within.

Secrets and personal data are found by the rules of training data (`data.scan`); these are what a file of a model holds
besides.
"""

import getpass
import re
import socket
from functools import cache

from ..data.findings import Finding
from ..data.scan import scan_text

_START = r"(?<![\w/.:@~-])"
_PATHS = (
    # Of a person.
    re.compile(_START + r"(?:file:/{2})?/(?:home|Users|export/home)/[\w.@-]+(?:/[\w.@+-]+)*"),
    re.compile(_START + r"~[\w.-]+/[\w.@+-]+(?:/[\w.@+-]+)*"),
    # Of a machine; at least one folder within.
    re.compile(
        _START + r"(?:file:/{2})?/(?:root(?!/\.cache/huggingface)|mnt|data|scratch|workspace|work|tmp|var|opt|srv|media"
        r"|volumes|private|nfs|gpfs|lustre|fsx|dbfs|content|kaggle|fast|ceph|storage|projects?|checkpoints?)/[\w.@+-]+(?:/[\w.@+-]+)*",
        re.I,
    ),
    re.compile(r"(?<![A-Za-z0-9])[A-Za-z]:[\\/]{1,2}(?:Users|[\w .-]+[\\/])[\\/]?[\w .-]+"),
    re.compile(r"(?<![\w\\])\\\\[\w.-]+\\[\w.$-]+"),
    re.compile(r"\b(?:s3a?|gs|hdfs|abfss?|wasbs?)://[\w.@-]+(?:/[\w.=+-]+)*"),
)
# Names that only a network of one's own knows.
_HOST = re.compile(
    r"(?<![\w.@-])(?:[a-z0-9](?:[\w-]*[a-z0-9])?\.)+(?:local|internal|corp|lan|intranet|intra|localdomain|home\.arpa)\b"
    r"(?![\w(=-]|\.\w)",
    re.I,
)
_ADDRESS = re.compile(r"(?<![\w.-])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)")
_LOGIN = re.compile(
    r"(?<![\w.@/-])[a-z_][\w-]{1,31}@(?!(?:latest|main|master|head|next|beta|stable)\b)[a-z][\w-]{2,}(?![.\w@-])", re.I
)
# Names of accounts and machines that tell nothing, and that are words of many texts.
_NOBODY = frozenset(
    [
        "root",
        "user",
        "ubuntu",
        "admin",
        "runner",
        "jovyan",
        "debian",
        "ec2-user",
        "localhost",
        "host",
        "docker",
        "builder",
        "container",
        "test",
        "model",
        "nobody",
        "vscode",
        "codespace",
        "app",
        "server",
        "main",
        "node",
        "default",
        "buildkite",
        "jenkins",
        "worker",
        "machine",
        "python",
    ]
)


def find_private(text: str) -> list[tuple[str, str]]:
    """Return (what it is, the place in words) of all that a text should not be published with."""
    found = [(finding.kind, _place(text, finding)) for finding in scan_text(text)]
    for pattern in _PATHS:
        found += [("local-path", _place(text, Finding("", *match.span()))) for match in pattern.finditer(text)]
    for kind, pattern in (("host-name", _HOST), ("internal-address", _ADDRESS), ("login", _LOGIN)):
        found += [(kind, _place(text, Finding("", *match.span()))) for match in pattern.finditer(text)]
    own = _own_names()
    if own is not None:
        kinds = {"user": "user-name", "host": "host-name"}
        found += [
            (kinds[str(match.lastgroup)], _place(text, Finding("", *match.span()))) for match in own.finditer(text)
        ]
    return found


def _place(text: str, finding: Finding) -> str:
    # Never the thing itself: what is printed ends up in logs.
    line = text.count("\n", 0, finding.start) + 1
    begin = text.rfind("\n", 0, finding.start) + 1
    many = "\n" in text
    return f"line {line}, character {finding.start - begin + 1}" if many else f"character {finding.start + 1}"


@cache
def _own_names() -> re.Pattern | None:
    """Return the pattern of this machine's name and this account's, where they tell anything."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = ""
    parts = [
        rf"(?P<{kind}>(?<![\w-]){re.escape(name)}(?![\w-]))"
        for kind, name in (("user", user), ("host", socket.gethostname().partition(".")[0]))
        if len(name) >= 4 and name.lower() not in _NOBODY
    ]
    return re.compile("|".join(parts)) if parts else None
