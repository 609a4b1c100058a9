"""Settings of a recipe that contradict each other or name what is not there; edits of `recipe_mistakes.RECIPE`."""

# Name: (what is replaced in the recipe, by what, the whole message).
CONTRADICTIONS = {
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
    "checkpoints of the best without evaluations": (
        "eval_strategy: steps",
        "save_strategy: best",
        "r.yaml:16: trainer.save_strategy: best needs evaluations while training; set trainer.eval_strategy to steps "
        "or epoch",
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
}
