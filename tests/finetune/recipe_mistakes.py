"""Mistakes that people make in recipes and overrides, each with what seeklet says to it."""

from itertools import pairwise

RECIPE = """\
# A recipe in which every line has its number.
stage: sft
model:
  path: some/model
  dtype: float32
data:
  train: data.jsonl
  validation: 0.1
  max_tokens: 512
adapter:
  targets: [attention, dense_mlp]
  rank: 8
trainer:
  learning_rate: 1e-4
  max_steps: 10
  eval_strategy: steps
evaluation:
  metrics: [loss, rouge]
output:
  dir: runs/x
"""

# Name: (what is replaced in the recipe, by what, the whole message).
EDITS = {
    "misspelt section": (
        "model:\n",
        "modle:\n",
        ["r.yaml:1: model: missing; expected a section with path", "r.yaml:3: modle: unknown key; nearest: model"],
    ),
    "misspelt key": ("rank: 8", "rnak: 8", "r.yaml:12: adapter.rnak: unknown key; nearest: rank"),
    "misspelt trainer key": (
        "learning_rate:",
        "learning_rte:",
        "r.yaml:14: trainer.learning_rte: unknown key; nearest: learning_rate",
    ),
    "key with a dash": ("max_tokens:", "max-tokens:", "r.yaml:9: data.max-tokens: unknown key; nearest: max_tokens"),
    "key like no other": (
        "path: some/model",
        "path: some/model\n  zzz: 1",
        "r.yaml:5: model.zzz: unknown key; allowed in model: path, revision, tokenizer, dtype, attn_implementation, "
        "device_map, fp8, trust_remote_code",
    ),
    "key of another section": ("rank: 8", "max_tokens: 8", "r.yaml:12: adapter.max_tokens: belongs to data.max_tokens"),
    "trainer key at the top": (
        "output:",
        "learning_rate: 1\noutput:",
        "r.yaml:19: learning_rate: belongs to trainer.learning_rate",
    ),
    "adapter key in the trainer": ("max_steps: 10", "rank: 8", "r.yaml:15: trainer.rank: belongs to adapter.rank"),
    "missing key": ("  path: some/model\n", "", "r.yaml:3: model.path: missing; expected a text that is not empty"),
    "missing section": (
        "output:\n  dir: runs/x\n",
        "",
        "r.yaml:1: output: missing; expected a section with dir",
    ),
    "missing stage": ("stage: sft\n", "", "r.yaml:1: stage: missing; expected one of sft"),
    "empty section": (
        "  train: data.jsonl\n  validation: 0.1\n  max_tokens: 512\n",
        "",
        "r.yaml:6: data: expected a section with train, got null",
    ),
    "key twice": ("rank: 8", "rank: 8\n  rank: 16", "r.yaml:13: rank: is there twice, first at r.yaml:12"),
    "section twice": ("output:", "model: {path: x}\noutput:", "r.yaml:19: model: is there twice, first at r.yaml:3"),
    "tab": ("  rank: 8", "\trank: 8", "r.yaml:12: a tab; YAML is indented with spaces"),
    "text for a number": (
        "max_tokens: 512",
        'max_tokens: "512"',
        'r.yaml:9: data.max_tokens: expected a whole number, got "512"; write it in digits alone',
    ),
    "thousands separator": (
        "max_steps: 10",
        "max_steps: 1_000",
        'r.yaml:15: trainer.max_steps: expected one of -1 or a whole number at least 1, got "1_000"; '
        "write it in digits alone",
    ),
    "fraction for a count": (
        "rank: 8",
        "rank: 8.5",
        "r.yaml:12: adapter.rank: expected a whole number at least 1, got 8.5",
    ),
    "yes for true": (
        "max_steps: 10",
        "bf16: yes",
        'r.yaml:15: trainer.bf16: expected true or false or null, got "yes"; write true or false',
    ),
    "one for true": (
        "dtype: float32",
        "trust_remote_code: 1",
        "r.yaml:5: model.trust_remote_code: expected true or false, got 1",
    ),
    "number for a text": (
        "path: some/model",
        "path: 42",
        "r.yaml:4: model.path: expected a text that is not empty, got 42; put it in quotes",
    ),
    "empty text": ("path: some/model", 'path: ""', 'r.yaml:4: model.path: expected a text that is not empty, got ""'),
    "null where none is allowed": (
        "rank: 8",
        "rank:",
        "r.yaml:12: adapter.rank: expected a whole number at least 1, got null",
    ),
    "list for a text": (
        "dir: runs/x",
        "dir: [runs, x]",
        "r.yaml:20: output.dir: expected a text that is not empty, got a list",
    ),
    "text for a section": (
        "output:\n  dir: runs/x",
        "output: runs/x",
        'r.yaml:19: output: expected a section with dir, got "runs/x"',
    ),
    "list for a section": (
        "output:\n  dir: runs/x",
        "output:\n  - dir: runs/x",
        "r.yaml:19: output: expected a section with dir, got a list",
    ),
    "section for a list": (
        "targets: [attention, dense_mlp]",
        "targets: {attention: true}",
        "r.yaml:11: adapter.targets: expected a list, each a text that is not empty, got a section",
    ),
    "number in a list of texts": (
        "metrics: [loss, rouge]",
        "metrics:\n    - loss\n    - 3",
        "r.yaml:20: evaluation.metrics[1]: expected loss, exact_match, rouge, bleu or a function by import path "
        "(package.module:function), got 3; put it in quotes",
    ),
    "zero out of range": ("rank: 8", "rank: 0", "r.yaml:12: adapter.rank: expected a whole number at least 1, got 0"),
    "negative learning rate": (
        "learning_rate: 1e-4",
        "learning_rate: -1e-4",
        "r.yaml:14: trainer.learning_rate: expected a number above 0, got -0.0001",
    ),
    "not a number": (
        "learning_rate: 1e-4",
        "learning_rate: .nan",
        "r.yaml:14: trainer.learning_rate: expected a number above 0, got nan",
    ),
    "infinite": ("rank: 8", "alpha: .inf", "r.yaml:12: adapter.alpha: expected a number above 0, got inf"),
    "share above one": (
        "validation: 0.1",
        "validation: 1.5",
        "r.yaml:8: data.validation is 1.5; allowed: files, or a share from 0 to below 1",
    ),
    "wrong choice": (
        "dtype: float32",
        "dtype: float23",
        'r.yaml:5: model.dtype: expected one of auto, float32, bfloat16, float16, got "float23"; nearest: float32',
    ),
    "wrong stage": ("stage: sft", "stage: stf", 'r.yaml:2: stage: expected one of sft, got "stf"; nearest: sft'),
    "wrong choice of TRL": (
        "eval_strategy: steps",
        "eval_strategy: step",
        'r.yaml:16: trainer.eval_strategy: expected one of no, steps, epoch, got "step"; nearest: steps',
    ),
    "wrong metric": (
        "metrics: [loss, rouge]",
        "metrics: [loss, roug]",
        "r.yaml:18: evaluation.metrics[1]: expected loss, exact_match, rouge, bleu or a function by import path "
        '(package.module:function), got "roug"',
    ),
    "overwrite_output_dir": (
        "max_steps: 10",
        "overwrite_output_dir: true",
        "r.yaml:15: trainer.overwrite_output_dir: no longer exists; no run is overwritten: choose a new output.dir, or "
        "--resume",
    ),
    "torch_dtype": ("dtype: float32", "torch_dtype: float32", "r.yaml:5: model.torch_dtype: is now model.dtype"),
    "warmup_ratio": (
        "max_steps: 10",
        "warmup_ratio: 0.1",
        "r.yaml:15: trainer.warmup_ratio: no longer exists; trainer.warmup_steps below 1 is a share of all steps",
    ),
    "max_prompt_length": (
        "max_steps: 10",
        "max_prompt_length: 10",
        "r.yaml:15: trainer.max_prompt_length: no longer exists; data.max_tokens bounds the whole conversation",
    ),
    "PEFT's key": ("rank: 8", "lora_alpha: 8", "r.yaml:12: adapter.lora_alpha: is adapter.alpha here"),
    "output_dir in the trainer": (
        "max_steps: 10",
        "output_dir: x",
        "r.yaml:15: trainer.output_dir: belongs to output.dir",
    ),
    "max_length in the trainer": (
        "max_steps: 10",
        "max_length: 10",
        "r.yaml:15: trainer.max_length: belongs to data.max_tokens",
    ),
    "packing in the trainer": ("max_steps: 10", "packing: true", "r.yaml:15: trainer.packing: belongs to data.packing"),
    "assistant_only_loss in the trainer": (
        "max_steps: 10",
        "assistant_only_loss: true",
        "r.yaml:15: trainer.assistant_only_loss: belongs to data.assistant_only",
    ),
    "hub_token": (
        "max_steps: 10",
        "hub_token: secret",
        "r.yaml:15: trainer.hub_token: is not set while training: the result is published afterwards, when it has been "
        "looked at",
    ),
    "fp8 kept without an adapter": (
        "dtype: float32\ndata:\n  train: data.jsonl\n  validation: 0.1\n  max_tokens: 512\nadapter:\n"
        "  targets: [attention, dense_mlp]\n  rank: 8\n",
        "fp8: keep\ndata:\n  train: data.jsonl\n",
        "r.yaml:5: model.fp8: keep freezes the weights, and without an adapter nothing is left to train; add one",
    ),
    "merge without an adapter": (
        "adapter:\n  targets: [attention, dense_mlp]\n  rank: 8\ntrainer:\n  learning_rate: 1e-4\n  max_steps: 10\n"
        "  eval_strategy: steps\nevaluation:\n  metrics: [loss, rouge]\noutput:\n",
        "output:\n  merge: true\n",
        "r.yaml:11: output.merge: there is no adapter to merge; without one the whole model is saved anyway",
    ),
    "both precisions": (
        "max_steps: 10",
        "bf16: true\n  fp16: true",
        "r.yaml:16: trainer.fp16: bf16 is true too; choose one",
    ),
    "patience without evaluations": (
        "  eval_strategy: steps\nevaluation:\n",
        "evaluation:\n  patience: 3\n",
        "r.yaml:17: evaluation.patience: needs evaluations while training; set trainer.eval_strategy to steps or epoch",
    ),
    "evaluations of nothing": (
        "validation: 0.1",
        "validation: 0.0",
        "r.yaml:16: trainer.eval_strategy: nothing is held out to evaluate on; set data.validation",
    ),
    "best of what was not evaluated": (
        "eval_strategy: steps",
        "load_best_model_at_end: true",
        "r.yaml:16: trainer.load_best_model_at_end: needs the same eval_strategy and save_strategy, steps or epoch; "
        "they are no and steps",
    ),
    "held out what is trained on": (
        "validation: 0.1",
        "validation: data.jsonl",
        "r.yaml:8: data.validation: data.jsonl is in data.train too, so it would measure what was learnt by heart",
    ),
    "same file twice": (
        "train: data.jsonl",
        "train: [data.jsonl, data.jsonl]",
        "r.yaml:7: data.train: data.jsonl is there twice",
    ),
    "MTP weight without MTP": (
        "output:",
        "moe:\n  mtp_loss: off\n  mtp_loss_weight: 0.1\noutput:",
        "r.yaml:21: moe.mtp_loss_weight: given, but moe.mtp_loss is off; leave one of them out",
    ),
    "model folder that is not there": (
        "path: some/model",
        "path: ./some/model",
        "r.yaml:4: model.path: ./some/model: no such folder, and no name on the Hub (owner/name)",
    ),
    "model folder without a model": (
        "path: some/model",
        "path: .",
        "r.yaml:4: model.path: .: holds no config.json, so no model",
    ),
    "data folder": ("train: data.jsonl", "train: .", "r.yaml:7: data.train: .: is a folder; name the files in it"),
    "output that is a file": (
        "dir: runs/x",
        "dir: data.jsonl",
        "r.yaml:20: output.dir: data.jsonl: is a file, not a folder",
    ),
    "output below a file": (
        "dir: runs/x",
        "dir: data.jsonl/x",
        "r.yaml:20: output.dir: data.jsonl/x: data.jsonl is a file, not a folder",
    ),
    "output with a name too long": (
        "dir: runs/x",
        f"dir: {'x' * 300}",
        f"r.yaml:20: output.dir: {'x' * 300}: File name too long",
    ),
    "text that steers a terminal": (
        "path: some/model",
        'path: "a\\e[31m\\nb"',
        "r.yaml:4: model.path: a\\x1b[31m\\nb: no such folder, and no name on the Hub (owner/name)",
    ),
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
