"""The part of Go's text/template that Ollama's chat templates are written in, so that they can be tried here.

Text, `{{ value }}`, `if`/`else if`/`else`, `range $i, $value :=`, `$name :=`, `-` that trims white space, and the
functions eq, ne, and, or, not, len, slice. Anything else raises: a template that is rendered another way than Ollama
does is worse than none. https://pkg.go.dev/text/template
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_ACTION = re.compile(r"\{\{(?P<left>-(?=\s))?(?P<code>.*?)(?P<right>(?<=\s)-)?\}\}", re.DOTALL)
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[(),]|\$?[\w.]*[\w.$])')
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, second: first != second,
    "not": lambda value: not value,
    "len": len,
    "slice": lambda values, start=0, end=None: values[start:end],
}

Scope = dict[str, Any]
_Render = Callable[[Scope], str]
_Value = Callable[[Scope], Any]


class GoTemplateError(ValueError):
    """A template holds what is not understood here."""


def render(template: str, data: Mapping[str, Any]) -> str:
    """Return what Go would write for `template` with `data`, whose keys are the names after the dots.

    Raises:
        GoTemplateError: the template uses more of Go than is understood here, or a name that `data` has not.
    """
    parser = _Parser(_split(template))
    body = parser.body()
    if parser.has_more:
        raise GoTemplateError(f"{parser.next_action} closes nothing")
    return body({"$": data, ".": data})


def _split(template: str) -> list[tuple[bool, str]]:
    """Return the parts in order: whether each is an action, and its text, white space trimmed where `-` says so."""
    parts: list[tuple[bool, str]] = []
    begin, trim = 0, False
    for action in _ACTION.finditer(template):
        text = template[begin : action.start()]
        text = text.lstrip() if trim else text
        parts.append((False, text.rstrip() if action["left"] else text))
        parts.append((True, action["code"].strip()))
        begin, trim = action.end(), action["right"] is not None
    text = template[begin:]
    return [*parts, (False, text.lstrip() if trim else text)]


class _Parser:
    """Turns parts into functions that render them."""

    def __init__(self, parts: list[tuple[bool, str]]):
        self._parts = parts
        self._at = 0

    @property
    def has_more(self) -> bool:
        return self._at < len(self._parts)

    @property
    def next_action(self) -> str:
        return "{{ " + self._parts[self._at][1] + " }}"

    def body(self) -> _Render:
        """Take all up to an `else` or `end` that is not this body's own."""
        inner: list[_Render] = []
        while self.has_more:
            is_action, text = self._parts[self._at]
            word = text.split(maxsplit=1)[0] if text.split() else ""
            if is_action and word in ("else", "end"):
                break
            self._at += 1
            if not is_action:
                inner.append(lambda scope, text=text: text)
            elif word == "if":
                inner.append(self._if(text[2:]))
            elif word == "range":
                inner.append(self._range(text[5:]))
            else:
                inner.append(_statement(text))
        return lambda scope: "".join(part(scope) for part in inner)

    def _if(self, condition: str) -> _Render:
        test, then = _expression(condition), self.body()
        word = self._take()
        if word == "end":
            return lambda scope: then(dict(scope)) if test(scope) else ""
        if word.startswith("else if"):
            otherwise = self._if(word.removeprefix("else if"))
        else:
            otherwise = self.body()
            self._end()
        return lambda scope: then(dict(scope)) if test(scope) else otherwise(dict(scope))

    def _range(self, header: str) -> _Render:
        names, _, source = header.rpartition(":=")
        variables = [name.strip() for name in names.split(",") if name.strip()]
        values, body = _expression(source), self.body()
        self._end()

        def run(scope: Scope) -> str:
            out = []
            for index, value in enumerate(values(scope)):
                # `range $i, $value`: the index first; `range $value`: the value alone.
                bound = dict(zip(variables, (index, value) if len(variables) == 2 else (value,), strict=False))
                out.append(body({**scope, ".": value, **bound}))
            return "".join(out)

        return run

    def _take(self) -> str:
        if not self.has_more:
            raise GoTemplateError("an if or range has no end")
        self._at += 1
        return " ".join(self._parts[self._at - 1][1].split())

    def _end(self) -> None:
        if (word := self._take()) != "end":
            raise GoTemplateError(f"expected an end, found {word}")


def _statement(code: str) -> _Render:
    name, assigned, value = code.partition(":=")
    if not assigned:
        expression = _expression(code)
        return lambda scope: str(expression(scope))
    variable, result = name.strip(), _expression(value)

    def assign(scope: Scope) -> str:
        scope[variable] = result(scope)
        return ""

    return assign


def _expression(code: str) -> _Value:
    words = _WORD.findall(code)
    if "".join(words) != "".join(code.split()) and '"' not in code:
        raise GoTemplateError(f"{{{{ {code.strip()} }}}} is not understood here")
    value, rest = _call(words)
    if rest or not words:
        raise GoTemplateError(f"{{{{ {code.strip()} }}}} is not understood here")
    return value


def _call(words: list[str]) -> tuple[_Value, list[str]]:
    """Take a function with its arguments, or one operand; return what it stands for and the words after it."""
    if not words or (words[0] not in _FUNCTIONS and words[0] not in ("and", "or")):
        return _operand(words)
    name, rest = words[0], words[1:]
    arguments: list[_Value] = []
    while rest and rest[0] != ")":
        argument, rest = _operand(rest)
        arguments.append(argument)
    if name in ("and", "or"):
        return (lambda scope: _first(arguments, name == "or", scope)), rest
    return (lambda scope: _FUNCTIONS[name](*(argument(scope) for argument in arguments))), rest


def _first(arguments: list[_Value], wanted: bool, scope: Scope) -> Any:
    """Return the first value that is as true as wanted, else the last; what is after it is not looked at."""
    value: Any = None
    for argument in arguments:
        value = argument(scope)
        if bool(value) == wanted:
            break
    return value


def _operand(words: list[str]) -> tuple[_Value, list[str]]:
    if not words:
        raise GoTemplateError("an expression ends too early")
    word, rest = words[0], words[1:]
    if word == "(":
        value, rest = _call(rest)
        if rest[:1] != [")"]:
            raise GoTemplateError("a bracket is not closed")
        return value, rest[1:]
    if word.startswith('"'):
        text = word[1:-1].replace(r"\n", "\n").replace(r"\"", '"').replace("\\\\", "\\")
        return (lambda scope: text), rest
    if word.isdigit():
        return (lambda scope: int(word)), rest
    if word[0] in ".$":
        return (lambda scope: _look_up(word, scope)), rest
    raise GoTemplateError(f"{word} is not understood here")


def _look_up(path: str, scope: Scope) -> Any:
    start, *names = path.split(".")
    try:
        value = scope[start or "."]
        for name in filter(None, names):
            value = value[name]
    except (KeyError, TypeError):
        raise GoTemplateError(f"there is no {path}") from None
    return value
