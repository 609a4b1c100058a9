"""Keys and values that are wrong in recipes, each with what seeklet says to it."""

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
        "device_map, fp8, quantization, double_quantization, trust_remote_code",
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
    "missing stage": ("stage: sft\n", "", "r.yaml:1: stage: missing; expected sft"),
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
        "r.yaml:15: trainer.max_steps: expected -1 or a whole number at least 1 and at most 2,147,483,647, got "
        '"1_000"; write it in digits alone',
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
    "wrong stage": (
        "stage: sft",
        "stage: stf",
        'r.yaml:2: stage: expected one of sft, grpo, distill, distill-topk, got "stf"; nearest: sft',
    ),
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
    "seed below zero": (
        "max_steps: 10",
        "seed: -1",
        "r.yaml:15: trainer.seed: expected a whole number at least 0 and at most 4,294,967,295, got -1",
    ),
    "more steps than there are": (
        "max_steps: 10",
        "max_steps: 100000000000000000000",
        "r.yaml:15: trainer.max_steps: expected -1 or a whole number at least 1 and at most 2,147,483,647, got "
        "100000000000000000000",
    ),
    "figure that nobody measures": (
        "max_steps: 10",
        "metric_for_best_model: foo",
        'r.yaml:15: trainer.metric_for_best_model: expected one of loss, eval_loss or null, got "foo"',
    ),
    "FSDP in the trainer": (
        "max_steps: 10",
        "fsdp: full_shard",
        "r.yaml:15: trainer.fsdp: belongs to accelerate's own file: accelerate launch --config_file "
        "recipes/accelerate/fsdp2_8gpu.yaml",
    ),
    "text for keyword arguments": (
        "max_steps: 10",
        "lr_scheduler_kwargs: min_lr=1e-6",
        'r.yaml:15: trainer.lr_scheduler_kwargs: expected a section or null, got "min_lr=1e-6"',
    ),
}
