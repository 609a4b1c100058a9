"""What the demo found, written down: `demo.json` for programs, `demo.md` for people, and a table for the terminal."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ..atomic_files import write_text
from ..evaluation.markdown import table
from ..evaluation.reasoning_report import STAGES_PLOT, show
from ..evaluation.reasoning_results import ReasoningReport
from ..pipeline.report import show_time
from ..pipeline.settings import REPORT
from .findings import GRPO, PASS_AT_1, Example, Findings, StageFigures, Target
from .out_folder import GREEDY, MARKDOWN, STATE

NOTHING = "–"
_HEADS = ("stage", "pass@1, greedy (%)", "pass@1, T = {t:g} (%)", "pass@{k} (%)", "thinks (%)", "tokens", "time")


def as_json(findings: Findings) -> dict[str, Any]:
    """Return what `demo.json` says of the findings."""
    return {
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "seconds": stage.seconds,
                "greedy": _figures(stage.greedy),
                "sampled": _figures(stage.sampled),
            }
            for stage in findings.stages
        ],
        "targets": [asdict(target) for target in findings.targets()],
        "failed_checks": findings.failed_checks(),
        "parameters": {**findings.parameters, "student_share": findings.student_share},
        "mtp_drafts": [asdict(speed) for speed in findings.drafts],
        "stock_reload": {**asdict(findings.reload), "passed": findings.reload.passed},
        "examples": [asdict(example) for example in findings.examples],
        "seconds": findings.seconds,
        "resumed": findings.resumed,
        "machine": dict(findings.machine),
        "versions": dict(findings.versions),
    }


def write_report(findings: Findings, folder: Path) -> None:
    """Write `demo.md` into the folder.

    Raises:
        OSError: it cannot be written.
    """
    write_text(folder / MARKDOWN, as_markdown(findings))


def as_markdown(findings: Findings) -> str:
    """Return the content of `demo.md`."""
    counts = findings.parameters
    head, rows = stage_table(findings)
    problems = findings.trained[0].greedy
    assert problems is not None
    sections = [
        "# DeepSeek-R1's recipe on a nano model",
        "A teacher of DeepSeek-V3's architecture (MLA, mixture of experts, multi-token prediction) with "
        f"{counts['teacher']:,} parameters learns chains of sums on this machine's CPU: from demonstrations of which "
        "a third think, then by reinforcement of right answers alone. What it writes then is sampled and "
        f"sieved, and teaches a dense student of Llama's architecture with {counts['student']:,} parameters, "
        f"{findings.student_share:.0%} of the teacher's. All figures are of {problems.num_problems:,} problems that "
        "none of them was trained on.",
        *(f"**CHECK FAILED: {failure}.**" for failure in findings.failed_checks()),
        *(["**Of `--quick`: a few steps of each stage, which teach nothing.**"] if findings.settings.quick else []),
        table(head, rows),
        "With 95 % intervals over problems. How often a model thinks and its mean length are of greedy answers.",
        f"![Figures by stage, sampled]({STAGES_PLOT})",
        "## What it is to reach",
        table(("what", "asked", "got", "reached"), [_target(target) for target in findings.targets()], align="left"),
        "## Reinforcement finds out that thinking pays",
        "Only the answer is rewarded. `thinks`, the share of samples with reasoning, is watched and has no weight.",
        f"![Mean reward of the samples]({GRPO}/plots/reward.png)",
        f"![Length of completions]({GRPO}/plots/length.png)",
        "## Before and after",
        "The same held-out problems, greedily, by what each stage left.",
        *map(_example, findings.examples),
        *_teacher(findings),
        "## Run",
        _run(findings),
        f"Each stage with its plots, example traces and recipe: [{REPORT}]({REPORT}). Greedy answers by stage: "
        f"[{GREEDY}/stages.md]({GREEDY}/stages.md). These figures for programs: [{STATE}]({STATE}).",
    ]
    return "\n\n".join(sections) + "\n"


def stage_table(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table of stages."""
    sampled = findings.trained[0].sampled
    assert sampled is not None
    temperature, samples = sampled.settings["temperature"], sampled.num_samples
    heads = [head.format(t=temperature, k=samples) for head in _HEADS]
    return heads, [[stage.name, *_cells(stage, samples), show_time(stage.seconds)] for stage in findings.stages]


def summary_table(findings: Findings) -> Table:
    """Return the table that ends the command's output; to be narrow enough, it has no intervals."""
    heads, rows = stage_table(findings)
    result = Table(title="seeklet demo", title_justify="left")
    for index, head in enumerate(heads):
        result.add_column(head, justify="right" if index else "left", no_wrap=not index)
    for name, *figures, time in rows:
        result.add_row(name, *(text.partition(" ")[0] for text in figures), time)
    return result


def target_table(findings: Findings) -> Table:
    """Return the figures to reach as a table for the terminal."""
    result = Table(title="To reach", title_justify="left")
    for head in ("what", "asked", "got", "reached"):
        result.add_column(head)
    for target in findings.targets():
        result.add_row(*_target(target))
    return result


def _cells(stage: StageFigures, samples: int) -> list[str]:
    if stage.greedy is None or stage.sampled is None:
        return [NOTHING] * (len(_HEADS) - 2)
    greedy, sampled = stage.greedy.figures, stage.sampled.figures
    at_k = f"pass@{samples}" if samples > 1 else PASS_AT_1
    figures = ((greedy, PASS_AT_1), (sampled, PASS_AT_1), (sampled, at_k), (greedy, "reasoned"), (greedy, "tokens"))
    return [show(each[name], name) for each, name in figures]


def _figures(report: ReasoningReport | None) -> dict[str, Any] | None:
    return None if report is None else {name: asdict(estimate) for name, estimate in report.figures.items()}


def _target(target: Target) -> tuple[str, str, str, str]:
    reached = {True: "yes", False: "no", None: NOTHING}[target.reached]
    return target.what, target.asked, target.got, reached


def _example(example: Example) -> str:
    width = max(map(len, example.said))
    lines = [
        f"{name:<{width}}  {'right' if is_right else 'wrong'}  {' '.join(text.split())}"
        for name, (text, is_right) in example.said.items()
    ]
    return "\n".join([f"`{example.prompt}` is `{example.answer}`:", "", "```text", *lines, "```"])


def _teacher(findings: Findings) -> list[str]:
    reload = findings.reload
    heads = ("rows at a time", "tokens/s without", "tokens/s with drafts", "ratio", "single pairs")
    rows = [
        (
            str(speed.rows),
            f"{speed.plain_tokens_per_s:,.0f}",
            f"{speed.drafts_tokens_per_s:,.0f}",
            f"{speed.speedup:.2f}",
            f"{speed.lowest:.2f} to {speed.highest:.2f}",
        )
        for speed in findings.drafts
    ]
    imported = "had imported seeklet" if reload.seeklet_imported else "never imported seeklet"
    same = "the same at every position" if reload.same_next_token else "**not the same everywhere**"
    return [
        "## Rollouts with MTP drafts",
        "The reinforced teacher samples as in rejection sampling, with its MTP module drafting and without in turns; "
        f"medians of {findings.drafts[0].repeats}.",
        table(heads, rows),
        "## The teacher in stock transformers",
        f"`{reload.model_class}` of transformers {reload.transformers} loaded `{GRPO}/model` in a fresh process that "
        f"{imported}. Over {reload.positions:,} positions of held-out conversations its logits differ from ours by at "
        f"most {reload.max_logit_difference:.1e} (largest logit {reload.max_logit:.1f}), and the most likely next "
        f"token is {same}. Tensors it missed: {len(reload.missing_tensors)}. Tensors it has no place for: "
        f"{len(reload.unexpected_tensors)}, those of the MTP module.",
    ]


def _run(findings: Findings) -> str:
    settings, machine = findings.settings, findings.machine
    took = f"{findings.seconds:.0f} s from the start of the process"
    rows = [
        ("seed", str(settings.seed)),
        ("threads", f"{settings.threads} of {machine['cores']} cores"),
        ("machine", f"{machine['system']} {machine['processor']}"),
        ("time", f"{took}, the part after an interruption" if findings.resumed else took),
        *findings.versions.items(),
    ]
    return table(("setting", "value"), rows, align="left")
