"""Rows with their secrets and personal data replaced by placeholders."""

from collections import Counter
from typing import Any

from .findings import Finding
from .rows import Row
from .scan import NOT_WRITTEN, is_clean, scan_text


def redact_text(text: str) -> tuple[str, list[Finding]]:
    """Return the text with a placeholder such as `[EMAIL]` for each finding, and the findings in the text as it was.

    Nothing is found in what it returns: redacting twice changes nothing more.
    """
    findings = scan_text(text)
    if not findings:
        return text, findings
    parts, end = [], 0
    for finding in findings:
        parts += [text[end : finding.start], finding.placeholder]
        end = finding.end
    return "".join([*parts, text[end:]]), findings


def redact_row(row: Row) -> tuple[Row, Counter[str]]:
    """Return the row without its secrets and personal data, and how many of each kind were replaced.

    Tool calls and tools are redacted as well, also where arguments are JSON in a string. Roles and ids stay. A row in
    which nothing is found is returned itself.
    """
    counts: Counter[str] = Counter()
    if is_clean(row):
        return row, counts
    messages = _redact(row.messages, counts)
    tools = _redact(row.tools, counts)
    return (row._replace(messages=messages, tools=tools) if counts else row), counts


def _redact(value: Any, counts: Counter[str]) -> Any:
    if isinstance(value, str):
        text, findings = redact_text(value)
        counts.update(finding.kind for finding in findings)
        return text
    if isinstance(value, dict):
        return {name: inner if name in NOT_WRITTEN else _redact(inner, counts) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(inner, counts) for inner in value]
    return value
