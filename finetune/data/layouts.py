"""Which shape a set of keys is, and which column is which."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..errors import DataError
from .formats import SHAPES, Column, Columns, known_shapes
from .problems import Flaw
from .rows import Source
from .wording import listed, quoted, similar

# A file with more sets of keys than this has the rest looked up row by row, so that memory stays bounded.
_MAX_REMEMBERED = 1000
_MAX_KEYS_LENGTH = 10_000


class Layout(NamedTuple):
    """What rows with one set of keys are; `flaws` say why where they are nothing known.

    `columns` holds the file's name for each column of the shape that is there, `ignored` the keys nobody reads.
    """

    shape: str
    columns: Columns
    ignored: tuple[str, ...]
    flaws: tuple[Flaw, ...] = ()


class Layouts:
    """Finds the layout of a set of keys.

    `shape` is one of `SHAPES` or "auto"; `columns` gives the file's own name for columns of the shape.

    Raises:
        DataError: `columns` names a column that no shape, or not the one given, has.
    """

    def __init__(self, shape: str = "auto", columns: Mapping[str, str] | None = None):
        self._given = dict(columns or {})
        fitting = [name for name in SHAPES if self._given.keys() <= {column.name for column in SHAPES[name]}]
        if shape == "auto":
            self._shapes = fitting
        elif shape in SHAPES:
            self._shapes = [shape] if shape in fitting else []
        else:
            raise DataError(f'format is "{shape}"; allowed: auto, {", ".join(SHAPES)}')
        if not self._shapes:
            raise DataError(_bad_columns(self._given, shape))

    def of(self, keys: tuple[str, ...]) -> Layout:
        """Return the layout of rows with these keys."""
        plain = {key.strip().lower().replace(" ", "_"): key for key in reversed(keys)}
        partial: list[tuple[int, str, dict[str, str], list[Column]]] = []
        for shape in self._shapes:
            found: dict[str, str] = {}
            for column in SHAPES[shape]:
                if column.name in self._given:
                    if self._given[column.name] in keys:
                        found[column.name] = self._given[column.name]
                elif name := next((plain[name] for name in (column.name, *column.others) if name in plain), None):
                    found[column.name] = name
            due = [column for column in SHAPES[shape] if column.required or column.name in self._given]
            missing = [column for column in due if column.name not in found]
            if not missing:
                ignored = tuple(key for key in keys if key not in found.values())
                return Layout(shape, found, ignored)
            partial.append((len(missing), shape, found, missing))
        # The shape that lacks least, if anything of it is there.
        started = [candidate for candidate in partial if any(_is_required(candidate[1], name) for name in candidate[2])]
        if len(self._shapes) == 1:
            started = partial
        if started:
            _, shape, found, missing = min(started, key=lambda candidate: candidate[0])
            return Layout(shape, found, (), tuple(self._missing(column, keys) for column in missing))
        message = f"has the keys {listed(keys)}; allowed: {known_shapes()}; or name yours: --columns {_example(keys)}"
        return Layout("unknown", {}, (), (Flaw("", message, "unknown-shape"),))

    def _missing(self, column: Column, keys: tuple[str, ...]) -> Flaw:
        if column.name in self._given:
            wanted = f"{quoted(self._given[column.name])} (for {column.name})"
        else:
            wanted = " or ".join(quoted(name) for name in (column.name, *column.others))
        close = similar(column.name, keys)
        hint = f"; if it is {quoted(close)}: --columns {column.name}={close}" if close else ""
        return Flaw("", f"has no {wanted}, only {listed(keys)}{hint}", "missing-column")


class FileLayouts:
    """The layouts of one file: remembers each, and finds fault with those of another shape than the first."""

    def __init__(self, layouts: Layouts, layout_seen: Callable[[Layout], object]):
        self._layouts = layouts
        self._layout_seen = layout_seen
        self._first: tuple[str, Source] | None = None
        self._remembered: dict[tuple[str, ...], Layout] = {}
        # The columns of layouts that were told of.
        self._told: set[tuple[str, str]] = set()

    def of(self, keys: tuple[str, ...], source: Source) -> Layout:
        """Return the layout of the row at `source`, which has these keys."""
        layout = self._remembered.get(keys)
        if layout is not None:
            return layout
        layout = self._layouts.of(keys)
        if self._first is None and not layout.flaws:
            self._first = (layout.shape, source)
        if self._first and not layout.flaws and layout.shape != self._first[0]:
            message = f"is {layout.shape}, but {self._first[1]} is {self._first[0]}; allowed: one shape in a file"
            layout = layout._replace(flaws=(Flaw("", message, "mixed-shapes"),))
        if len(self._remembered) < _MAX_REMEMBERED and sum(map(len, keys)) < _MAX_KEYS_LENGTH:
            self._remembered[keys] = layout
            is_new = True
        else:
            is_new = not self._told.issuperset(layout.columns.items())
        if is_new and not layout.flaws:
            self._told.update(layout.columns.items())
            self._layout_seen(layout)
        return layout


def _example(keys: tuple[str, ...]) -> str:
    question, answer = keys if len(keys) == 2 and all(key.isprintable() for key in keys) else ("…", "…")
    return f"question={question},answer={answer}"


def _is_required(shape: str, name: str) -> bool:
    return any(column.name == name and column.required for column in SHAPES[shape])


def _bad_columns(given: Mapping[str, str], shape: str) -> str:
    if shape != "auto":
        allowed = ", ".join(column.name for column in SHAPES[shape])
        odd = [name for name in given if name not in {column.name for column in SHAPES[shape]}]
        return f"columns: {listed(odd)} is no column of {shape}; allowed: {allowed}"
    allowed = "; ".join(f"{name}: {', '.join(column.name for column in SHAPES[name])}" for name in SHAPES)
    return f"columns: {listed(given)} are not columns of one shape; allowed: {allowed}"
