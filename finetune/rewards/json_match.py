"""Rewards of answers in JSON: valid by a schema, or with the fields that were asked for."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from ..errors import RecipeError, RewardError
from .completion import Row, answer_of, read_column

FENCED = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL)


@dataclass(frozen=True)
class JsonSchema:
    """1 where the answer is one JSON value that a JSON schema allows, else 0.

    The schema is given here, or by a column: as an object or as its text. Around the value nothing may stand but a
    fence (```json … ```). A schema's references are followed within it only, never fetched.
    """

    schema: Mapping[str, Any] | None = None
    column: str | None = None

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True

    def __post_init__(self):
        if (self.schema is None) == (self.column is None):
            raise RecipeError("schema or column: give one of them, the schema itself or the column that holds it")
        if self.schema is not None:
            try:
                _checked(self.schema)
            except RewardError as error:
                raise RecipeError(f"schema: {error}") from None

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row lacks the schema, or it is none.
        """
        if self.schema is not None:
            schema = self.schema
        else:
            schema = _checked(_read_json(read_column(row, self.column or ""), self.column or ""))
        try:
            value = parse_json(answer_of(completion, row))
        except ValueError:
            return 0.0
        try:
            return float(_validator(schema).is_valid(value))
        except Unresolvable as error:
            raise RewardError(f"the schema refers to what it does not hold: {error}") from None


@dataclass(frozen=True)
class JsonFields:
    """The share of fields that are right, of all that are expected or given: an answer in JSON against an object.

    Expected `{"name": "Ada", "age": 36}`, answered `{"name": "Ada", "age": 37, "city": "London"}`: 1 of 3. What is no
    JSON object has 0. Values are equal as JSON is: 1 is 1.0, but not true; the order counts in lists only.
    """

    column: str = "answer"

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True

    def __call__(self, completion: str, row: Row) -> float:
        """Return the score; see the class.

        Raises:
            RewardError: the row lacks the object, or it is none.
        """
        expected = _read_json(read_column(row, self.column), self.column)
        if not isinstance(expected, Mapping) or not expected:
            raise RewardError(f'"{self.column}" is {str(expected)[:60]!r}; allowed: a JSON object with some field')
        try:
            given = parse_json(answer_of(completion, row))
        except ValueError:
            return 0.0
        if not isinstance(given, dict):
            return 0.0
        right = sum(key in given and _equal(given[key], value) for key, value in expected.items())
        return right / len(expected.keys() | given.keys())


def parse_json(text: str) -> Any:
    """Return the value of a text that is JSON and nothing else, apart from a fence and blank space.

    Raises:
        ValueError: it is not; also for NaN and Infinity, a key that is there twice, and what nests too deep to read.
    """
    fenced = FENCED.match(text.strip())
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_refuse_constant, object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("too many levels of nesting") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


def _read_json(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise RewardError(f'"{column}" is no JSON: {error}') from None


def _checked(schema: Any) -> Mapping[str, Any]:
    if not isinstance(schema, Mapping):
        raise RewardError(f"the schema is {str(schema)[:60]!r}; allowed: an object")
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(dict(schema))
    except SchemaError as error:
        raise RewardError(f"the schema is no JSON schema: {error.json_path}: {error.message}") from None
    return schema


def _validator(schema: Mapping[str, Any]) -> Any:
    # A registry of its own: the default one fetches what a schema refers to.
    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())
