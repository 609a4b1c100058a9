"""Recipes and overrides that are no YAML, or more than a recipe may be; edits of `recipe_mistakes.RECIPE`."""

from itertools import pairwise

# Name: (what is replaced in the recipe, by what, the whole message).
SYNTAX = {
    "anchor": ("rank: 8", "rank: &r 8", "r.yaml:12: the anchor &r: recipes have none, write each value out"),
    "tag that runs code": (
        "path: some/model",
        "path: !!python/object/apply:os.system [ls]",
        "r.yaml:4: the tag tag:yaml.org,2002:python/object/apply:os.system: recipes have none, and run no code",
    ),
    "merge key": (
        "rank: 8",
        "<<: {rank: 8}",
        "r.yaml:12: adapter.<<: unknown key; allowed in adapter: targets, rank, alpha, dropout, rslora, init, "
        "modules_to_save",
    ),
    "number as a key": ("rank: 8", "8: 8", "r.yaml:12: the key 8: keys are names"),
    "list as a key": ("rank: 8", "? [a, b]\n  : 8", "r.yaml:12: the key a list or mapping: keys are names"),
    "second document": ("output:", "---\noutput:", "r.yaml:19: a second YAML document starts here; a recipe is one"),
    "bracket left open": (
        "targets: [attention, dense_mlp]",
        "targets: [attention",
        "r.yaml:11: not YAML: the bracket [ is not closed, or a comma is missing: targets: [attention",
    ),
    "colon forgotten": ("rank: 8", "rank 8", "r.yaml:12: not YAML: no colon after the key: rank 8"),
    "wrong indent": (
        "  rank: 8",
        "   rank: 8",
        "r.yaml:12: not YAML: the indentation does not fit the lines before: rank: 8",
    ),
    "colon in a text": (
        "path: some/model",
        "path: some: model",
        "r.yaml:4: not YAML: a colon too many; a text with a colon and a space is put in quotes: path: some: model",
    ),
    "text that starts with @": (
        "path: some/model",
        "path: @some/model",
        "r.yaml:4: not YAML: a text that starts with this character is put in quotes: path: @some/model",
    ),
    "unclosed quote": (
        "path: some/model",
        'path: "some/model',
        'r.yaml:4: not YAML: the quote is not closed: path: "some/model',
    ),
    "forbidden character": (
        "path: some/model",
        "path: some\x07model",
        "r.yaml:4: not YAML: the character '\\x07' is not allowed",
    ),
}

# Bytes of a whole file, and the message.
FILES = {
    "empty": (b"", "r.yaml:1: the recipe is empty; it starts with keys such as 'stage: sft'"),
    "comments only": (b"# nothing\n", "r.yaml:1: the recipe is empty; it starts with keys such as 'stage: sft'"),
    "a list": (b"- stage: sft\n", "r.yaml:1: the recipe is not a mapping; it starts with keys such as 'stage: sft'"),
    "a text": (b"train on my data", "r.yaml:1: the recipe is not a mapping; it starts with keys such as 'stage: sft'"),
    "Latin-1": ("stage: sft\n# für uns\n".encode("latin-1"), "r.yaml:2: not UTF-8: byte 0xfc"),
    "binary": (b"PK\x03\x04\xff\xfe", "r.yaml:1: not UTF-8: byte 0xff"),
    "too large": (b"# " + b"x" * 300_000, "r.yaml: larger than 256 KiB, so hardly a recipe"),
    "nested deeply": (b"stage: " + b"[" * 5000, "r.yaml:1: nested more than 12 deep"),
    "a number of 5,000 digits": (
        b"stage: " + b"9" * 5000,
        f"r.yaml:1: the number {'9' * 59}…: has 5000 characters",
    ),
}
BOMB = "a: &a [x, x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefg"))

OVERRIDES = {
    "no equals sign": ("adapter.rank", "expected key=value, such as trainer.learning_rate=1e-5"),
    "no key": ("=8", "expected key=value, such as trainer.learning_rate=1e-5"),
    "two dots": ("adapter..rank=8", "expected key=value, such as trainer.learning_rate=1e-5"),
    "misspelt key": ("adapter.rnak=8", "adapter.rnak: unknown key; nearest: rank"),
    "misspelt section": ("adaptr.rank=8", "adaptr: unknown key; nearest: adapter"),
    "wrong type": ("adapter.rank=eight", 'adapter.rank: expected a whole number at least 1, got "eight"'),
    "wrong range": ("trainer.learning_rate=-1", "trainer.learning_rate: expected a number above 0, got -1"),
    "no value": ("adapter.rank=", "adapter.rank: expected a whole number at least 1, got null"),
    "moved key": ("trainer.max_length=5", "trainer.max_length: belongs to data.max_tokens"),
    "below a value": (
        "adapter.rank.x=5",
        "adapter.rank: expected a whole number at least 1, got a section",
    ),
    "not YAML": ("data.train=[a", "not YAML: the bracket [ is not closed, or a comma is missing: [a"),
    "alias": ("adapter.rank=*r", "the alias *r: recipes have none, write the value out"),
    "contradiction": (
        "evaluation.min_improvement=0.1",
        "evaluation.min_improvement: has no effect without evaluation.patience",
    ),
}
