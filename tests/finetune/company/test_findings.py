"""What counts as a failed example, the report, and the recipe it runs."""

from pathlib import Path
from typing import Any

from seeklet.finetune.company.findings import Findings, Stage, find_shared_questions
from seeklet.finetune.company.inputs import RECIPE
from seeklet.finetune.company.report import as_markdown, write_report
from seeklet.finetune.company.stock import StockChat
from seeklet.finetune.data.settings import DataSettings
from seeklet.finetune.evaluation.findings import Evaluation, Side
from seeklet.finetune.evaluation.generation import Answer
from seeklet.finetune.evaluation.measures import with_ones
from seeklet.finetune.evaluation.questions import Question
from seeklet.finetune.evaluation.scores import LOSS, ROUGE
from seeklet.finetune.recipe import Recipe, load_recipe

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does *it* cost?"},
    {"role": "assistant", "content": "<b>7</b> crowns"},
]


def read_recipe(root: Path) -> Recipe:
    (root / "model").mkdir(exist_ok=True)
    (root / "model" / "config.json").write_text("{}")
    (root / "faq.csv").write_text("q,a\n")
    return load_recipe(
        RECIPE, [f"model.path={root / 'model'}", f"data.train={root / 'faq.csv'}", f"output.dir={root / 'run'}"]
    )


def build(root: Path, losses: list[float], rouge: list[float], **changes: Any) -> Findings:
    question = Question([CHAT[1]], "7 crowns.", "faq.csv:2", [1], thinking=False)
    answers = [Answer("seven", 1, finished=True)]
    before = Side("base", {LOSS: with_ones([4.0, 5.0, 6.0]), ROUGE["rougeL"]: with_ones([0.1, 0.2, 0.1])}, answers, 1.0)
    after = Side("run/adapter", {LOSS: with_ones(losses), ROUGE["rougeL"]: with_ones(rouge)}, answers, 1.0)
    recipe = read_recipe(root)
    evaluation = Evaluation(before, after, 3, [question], {}, {"num_samples": 1, "use_mtp": False}, {})
    stock = StockChat("stock.Model", "5.22.2", [], [], False, [1.0], [CHAT])
    parts: dict[str, Any] = {"stock": stock, "largest_loss_difference": 1e-5, "shared_questions": []}
    stages = [Stage("check", 1.0, 0.5), Stage("train", 3.4, 6.6)]
    return Findings(recipe=recipe, data=None, evaluation=evaluation, stages=stages, **(parts | changes))  # pyright: ignore[reportArgumentType]


def test_nothing_fails(tmp_path: Path) -> None:
    findings = build(tmp_path, [3.0, 4.0, 5.0], [0.3, 0.4, 0.3])
    assert findings.failed_checks() == []
    assert findings.measure("loss").difference is not None


def test_everything_fails(tmp_path: Path) -> None:
    stock = StockChat("stock.Model", "5.22.2", ["lm_head.weight"], [], True, [1.0], [CHAT])
    changes = {"stock": stock, "largest_loss_difference": 0.5, "shared_questions": ["Why?"]}
    assert build(tmp_path, [5.0, 6.0, 7.0], [0.2, 0.1, 0.1], **changes).failed_checks() == [
        "loss (nats per token) did not clearly improve: +1.000 (+1.000 to +1.000)",
        "ROUGE-L (F1, %) did not clearly improve: +0.0 (-10.0 to +10.0)",
        "held-out questions were trained on, 'Why?' among them",
        "stock transformers found the merged model's tensors other than it needs: lm_head.weight",
        "the process of stock transformers had imported seeklet",
        "the merged model's losses differ from the adapter's by up to 0.5000 nats",
    ]


def test_report(tmp_path: Path) -> None:
    findings = build(tmp_path, [3.0, 4.0, 5.0], [0.3, 0.4, 0.3], shared_questions=["Why?"])
    plots = tmp_path / "run" / "plots"
    plots.mkdir(parents=True)
    (plots / "train_loss.png").write_bytes(b"")
    write_report(findings, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text == as_markdown(findings, tmp_path)
    assert "| loss (nats per token) | 5.000 (" in text and "| -1.000 (-1.000 to -1.000) | better |" in text
    assert "**CHECK FAILED: held-out questions were trained on, 'Why?' among them.**" in text
    # What a model or a customer writes is shown as it is.
    assert "**user**\n\n> What does \\*it\\* cost?  \n\n**assistant**\n\n> &lt;b>7&lt;/b> crowns  \n" in text
    assert "![train loss](run/plots/train_loss.png)" in text
    assert "CC BY 4.0" in text and "| train | 3 | 7 |\n| **all** | **4** | **7** |" in text


def test_recipe_holds_out_whole_questions(tmp_path: Path) -> None:
    recipe = read_recipe(tmp_path)
    assert recipe.data.validation == 0.15 and recipe.output.merge
    settings = DataSettings(train=(str(tmp_path / "faq.csv"),), columns=recipe.data.columns, validation=0.5)

    def shared(second: str) -> list[str]:
        questions = [*(f"Question {number}?" for number in range(20)), *(second.format(n) for n in range(20))]
        lines = [f'"{question}",Answer {number}.' for number, question in enumerate(questions)]
        (tmp_path / "faq.csv").write_text("\n".join(["q,a", *lines]) + "\n")
        return find_shared_questions(settings)

    # Asked again with another answer, in other case and spacing: on the side of the first.
    assert shared("QUESTION  {} ?") == []
    # With another mark at its end it is another question for the split, and the same for this check.
    found = shared("Question {}!")
    assert 0 < len(found) < 20 and set(found) <= {f"Question {n}{mark}" for n in range(20) for mark in "?!"}
