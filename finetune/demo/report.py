"""What a run found, written down: `report.json` for programs, `report.md` for people, and a table for the terminal."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from .drafts import DraftComparison
from .evaluate import Accuracy
from .findings import Example, Findings
from .plots import relative_load
from .stock_reload import StockReload


def as_json(findings: Findings) -> dict[str, Any]:
    """Return the content of `report.json`; plots are named relative to the report."""
    history = findings.history
    last = history.steps[-1]
    return {
        "settings": asdict(findings.settings),
        "training": {
            **asdict(findings.training),
            "steps_done": last.step,
            "stopped_early": history.stopped_early,
            "final_lm_loss": last.lm_loss,
            "final_mtp_loss": last.mtp_loss,
            "validation": [{"step": v.step, **_accuracy_json(v.accuracy)} for v in history.validations],
            "fullest_expert": fullest_expert(findings),
        },
        "machine": findings.machine,
        "versions": findings.versions,
        "parameters": findings.parameters,
        "accuracy": {"before": _accuracy_json(findings.before), "after": _accuracy_json(findings.after)},
        "mtp_drafts": {
            **asdict(findings.drafts),
            "tokens_per_step": findings.drafts.tokens_per_step,
            "acceptance": findings.drafts.acceptance,
            "speedup": findings.drafts.speedup,
        },
        "stock_reload": {**asdict(findings.reload), "passed": findings.reload.passed},
        "failed_checks": findings.failed_checks(),
        "examples": [asdict(example) for example in findings.examples],
        "plots": {name: f"plots/{file.name}" for name, file in findings.plots.items()},
        "stages": [asdict(stage) for stage in findings.stages],
    }


def fullest_expert(findings: Findings) -> dict[str, dict[str, float]]:
    """Return per MoE layer the fullest expert's load over the mean, in the first and the last tenth of training."""
    tenths = relative_load(findings.history, 10).max(axis=1)
    return {
        name: {"first_tenth": float(layer[0]), "last_tenth": float(layer[-1])}
        for name, layer in zip(findings.layer_names, tenths, strict=True)
    }


def write_report(findings: Findings, folder: Path) -> None:
    """Write `report.json` and `report.md` into `folder`."""
    report = as_json(findings)
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(as_markdown(findings), encoding="utf-8")


def as_markdown(findings: Findings) -> str:
    """Return the content of `report.md`."""
    sections = [
        "# seeklet demo: a nano DeepSeek-V3 learns to reason",
        f"A model with DeepSeek-V3's architecture (MLA, mixture of experts, multi-token prediction) and "
        f"{findings.parameters['total']:,} parameters was trained from random weights on this machine's CPU to solve "
        "chains of sums by writing out running totals. Problems and verifier are reasoning-gym's `chain_sum`; no test "
        "problem was trained or validated on.",
        *(f"**CHECK FAILED: {failure}.**" for failure in findings.failed_checks()),
        _table(("", "result"), summary_rows(findings)),
        *_learning(findings),
        *_drafts(findings.drafts),
        *_stock(findings.reload),
        "## Examples",
        "Two problems it solves now, and one that it does not, where there is one.",
        *(_example(example) for example in findings.examples),
        *_run(findings),
        "Every step's figures are in `metrics.jsonl`, these in `report.json`.",
    ]
    return "\n\n".join(sections) + "\n"


def _learning(findings: Findings) -> list[str]:
    history, last = findings.history, findings.history.steps[-1]
    stopped = (
        f"stopped at step {last.step} of {findings.training.steps}, when validation accuracy reached "
        f"{findings.training.stop_accuracy * 100:.0f} %"
        if history.stopped_early
        else f"ran all {last.step} steps"
    )
    loads = fullest_expert(findings).items()
    return [
        "## Accuracy",
        _table(
            ("", "solved", "of", "share", "95 % interval (Wilson)"),
            [
                _accuracy_row("before training", findings.before),
                _accuracy_row("after training", findings.after),
            ],
        ),
        f"Greedy answers, scored by the task's own verifier; full marks only. Training {stopped}.",
        "![Validation accuracy over steps](plots/accuracy.png)",
        "## Loss",
        f"At the last step: next token {last.lm_loss:.4f}, token after next {last.mtp_loss:.4f} nats per token.",
        "![Training losses over steps](plots/loss.png)",
        "## Expert load",
        "Tokens of the fullest expert over the layer's mean; the router bias is moved towards balance after each step.",
        _table(
            ("layer", "first tenth of training", "last tenth"),
            [(name, f"{load['first_tenth']:.2f}", f"{load['last_tenth']:.2f}") for name, load in loads],
        ),
        "![Expert load over steps](plots/expert_load.png)",
    ]


def _drafts(drafts: DraftComparison) -> list[str]:
    return [
        "## MTP drafts",
        _table(
            ("", "plain", "with drafts"),
            [
                ("passes through the main model", f"{drafts.new_tokens:,}", f"{drafts.main_model_steps:,}"),
                ("tokens per pass", "1.00", f"{drafts.tokens_per_step:.2f}"),
                ("seconds (median)", f"{drafts.plain_s:.2f}", f"{drafts.drafts_s:.2f}"),
            ],
        ),
        f"{drafts.acceptance * 100:.1f} % of the drafts were right. {drafts.new_tokens:,} tokens for {drafts.prompts} "
        f"prompts, one prompt at a time, one thread, {drafts.repeats} runs of each kind in turns: "
        f"{drafts.speedup:.2f}x faster (single pairs {drafts.speedup_lowest:.2f}x to {drafts.speedup_highest:.2f}x). "
        f"The tokens are {'identical' if drafts.identical_tokens else '**not identical**'}.",
    ]


def _stock(reload: StockReload) -> list[str]:
    return [
        "## The checkpoint in stock transformers",
        f"`{reload.model_class}` of transformers {reload.transformers} loaded `model/` in a fresh process "
        f"{'that never imported seeklet' if not reload.seeklet_imported else 'that **had imported seeklet**'}. Over "
        f"{reload.positions:,} positions of held-out conversations its logits differ from ours by at most "
        f"{reload.max_logit_difference:.1e} (largest logit {reload.max_logit:.1f}), and the most likely next token is "
        f"{'the same at every position' if reload.same_next_token else '**not the same everywhere**'}. "
        f"Tensors it missed: {len(reload.missing_tensors)}. Tensors it has no place for: "
        f"{len(reload.unexpected_tensors)}, those of the MTP module.",
    ]


def _run(findings: Findings) -> list[str]:
    settings = findings.settings
    return [
        "## Where the time went",
        _table(
            ("stage", "wall (s)", "CPU (s)"),
            [
                *((stage.name, f"{stage.wall_s:.1f}", f"{stage.cpu_s:.1f}") for stage in findings.stages),
                ("**all**", *(f"**{sum(values):.1f}**" for values in _stage_columns(findings))),
            ],
        ),
        "## Run",
        _table(
            ("setting", "value"),
            [
                ("seed", str(settings.seed)),
                ("threads", str(settings.threads)),
                ("cores", str(findings.machine["cores"])),
                ("machine", f"{findings.machine['system']} {findings.machine['cpu']}"),
                *((name, version) for name, version in findings.versions.items()),
            ],
        ),
    ]


def summary_rows(findings: Findings) -> list[tuple[str, str]]:
    """Return the lines of the summary, label and result."""
    drafts, reload = findings.drafts, findings.reload
    wall_s, _ = _stage_columns(findings)
    same = "same tokens" if drafts.identical_tokens else "OTHER TOKENS"
    verdict = "same model" if reload.passed else "ANOTHER MODEL"
    return [
        ("accuracy before", format_accuracy(findings.before)),
        ("accuracy after", format_accuracy(findings.after)),
        ("MTP drafts", f"{drafts.tokens_per_step:.2f} tokens per step, {drafts.speedup:.2f}x faster, {same}"),
        ("stock transformers", f"{verdict}, logits within {reload.max_logit_difference:.0e}"),
        ("time", f"{sum(wall_s):.0f} s, imports left out"),
    ]


def format_accuracy(accuracy: Accuracy) -> str:
    """Return for instance `97.3 % (95 % interval 95.5 to 98.4)`."""
    low, high = accuracy.interval
    return f"{accuracy.value * 100:.1f} % (95 % interval {low * 100:.1f} to {high * 100:.1f})"


def summary_table(findings: Findings, out: Path) -> Table:
    """Return the table that ends the command's output."""
    table = Table(title="seeklet demo", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for label, result in summary_rows(findings):
        table.add_row(label, result)
    table.add_section()
    for label, name in (("report", "report.md"), ("plots", "plots"), ("checkpoint", "model")):
        table.add_row(label, str(out / name))
    return table


def _stage_columns(findings: Findings) -> tuple[list[float], list[float]]:
    return [stage.wall_s for stage in findings.stages], [stage.cpu_s for stage in findings.stages]


def _accuracy_json(accuracy: Accuracy) -> dict[str, Any]:
    low, high = accuracy.interval
    return {"correct": accuracy.correct, "total": accuracy.total, "value": accuracy.value, "low": low, "high": high}


def _accuracy_row(label: str, accuracy: Accuracy) -> tuple[str, ...]:
    low, high = (f"{bound * 100:.1f}" for bound in accuracy.interval)
    return label, str(accuracy.correct), str(accuracy.total), f"{accuracy.value * 100:.1f} %", f"{low} to {high} %"


def _example(example: Example) -> str:
    verdict = "solved" if example.solved_after else "wrong"
    lines = [
        f"question  {example.prompt} = ?  ({example.answer})",
        f"before    {example.before}",
        f"after     {example.after}",
    ]
    return "\n".join([f"{verdict}:", "```", *lines, "```"])


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
