"""Answers in JSON."""

import pytest

from seeklet.finetune.errors import RecipeError, RewardError
from seeklet.finetune.rewards.json_match import JsonFields, JsonSchema

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ('<think>{"age": 1}</think>{"name": "Ada", "age": 36}', 1.0),
        ('```json\n{"name": "Ada"}\n```', 1.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"age": 36}', 0.0),
        ('{"name": "Ada", "born": 1815}', 0.0),
        ('Here it is: {"name": "Ada"}', 0.0),
        ('{"name": "Ada"} {"name": "Bob"}', 0.0),
        ('{"name": "Bob", "name": "Ada"}', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ('{"name": "Ada"', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_schema(completion: str, score: float) -> None:
    assert JsonSchema(schema=PERSON)(completion, {}) == score
    assert JsonSchema(column="schema")(completion, {"schema": PERSON}) == score


def test_a_schema_as_text() -> None:
    assert JsonSchema(column="schema")("3", {"schema": '{"type": "integer"}'}) == 1.0


def test_a_schema_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"schema: the schema is no JSON schema: \$\.type: 'thing' is not valid"):
        JsonSchema(schema={"type": "thing"})
    with pytest.raises(RecipeError, match="give one of them"):
        JsonSchema()
    with pytest.raises(RewardError, match='"schema" is no JSON'):
        JsonSchema(column="schema")("3", {"schema": "{"})
    with pytest.raises(RewardError, match="allowed: an object"):
        JsonSchema(column="schema")("3", {"schema": "3"})


def test_what_a_schema_refers_to_is_never_fetched() -> None:
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    with pytest.raises(RewardError, match="refers to what it does not hold"):
        JsonSchema(schema=schema)("3", {})


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ('{"name": "Ada", "age": 36, "tags": [1, 2]}', 1.0),
        # The order of fields and how a number is written don't matter; the order in a list does.
        ('{"tags": [1.0, 2], "age": 36, "name": "Ada"}', 1.0),
        ('{"name": "Ada", "age": 36, "tags": [2, 1]}', 2 / 3),
        ('{"name": "Ada", "age": 36}', 2 / 3),
        # A field too many is as wrong as one too few.
        ('{"name": "Ada", "age": 36, "tags": [1, 2], "city": "London"}', 3 / 4),
        ('{"name": "Ada", "age": true, "tags": [true, 2]}', 1 / 3),
        ('["name", "Ada"]', 0.0),
        ("none", 0.0),
    ],
)
def test_fields(completion: str, score: float) -> None:
    row = {"answer": {"name": "Ada", "age": 36, "tags": [1, 2]}}
    assert JsonFields()(completion, row) == pytest.approx(score)
    assert JsonFields()(completion, {"answer": '{"name": "Ada", "age": 36, "tags": [1, 2]}'}) == pytest.approx(score)


@pytest.mark.parametrize("value", ["[1]", "{}", "3", "{"])
def test_fields_need_an_object(value: str) -> None:
    with pytest.raises(RewardError, match='"answer" is'):
        JsonFields()("{}", {"answer": value})
