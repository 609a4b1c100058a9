"""What a run of the example found, and whether it showed what it is there to show."""

from dataclasses import dataclass

from ..data.check import CheckReport
from ..data.read import read
from ..data.rows import Row
from ..data.settings import DataSettings
from ..data.split import is_held_out
from ..evaluation.answers import normalise
from ..evaluation.findings import Evaluation
from ..evaluation.measures import Comparison
from ..evaluation.report import comparison_cells
from ..recipe import Recipe
from .stock import MAX_LOSS_DIFFERENCE, StockChat

# What must clearly improve: the intervals of the differences leave out 0.
SHOWN = ("loss", "rougeL")


@dataclass(frozen=True)
class Stage:
    """One part of the run, and what it took."""

    name: str
    wall_s: float
    cpu_s: float
    """Of all threads, and of processes that were started; a machine with other work to do shows in the wall's alone."""


@dataclass(frozen=True)
class Findings:
    """Everything that the report shows."""

    recipe: Recipe
    data: CheckReport
    evaluation: Evaluation
    stock: StockChat
    largest_loss_difference: float
    """Between the merged model in stock transformers and the adapter on its base, in nats per conversation."""
    shared_questions: list[str]
    """Held-out questions that were trained on as well."""
    stages: list[Stage]

    def measure(self, name: str) -> Comparison:
        """Return the figure of this name, before and after."""
        return next(found for found in self.evaluation.comparisons if found.measure.name == name)

    def failed_checks(self) -> list[str]:
        """Return in words what did not turn out as it has to."""
        stock = self.stock
        failures = [
            f"{found.measure.label} did not clearly improve: {comparison_cells(found)[3]}"
            for found in map(self.measure, SHOWN)
            if found.verdict != "better"
        ]
        if self.shared_questions:
            failures.append(f"held-out questions were trained on, {self.shared_questions[0]!r} among them")
        if stock.missing_tensors or stock.unexpected_tensors:
            odd = [*stock.missing_tensors, *stock.unexpected_tensors]
            failures.append(f"stock transformers found the merged model's tensors other than it needs: {odd[0]}")
        if stock.seeklet_imported:
            failures.append("the process of stock transformers had imported seeklet")
        if self.largest_loss_difference > MAX_LOSS_DIFFERENCE:
            failures.append(
                f"the merged model's losses differ from the adapter's by up to {self.largest_loss_difference:.4f} nats"
            )
        return failures


def find_shared_questions(settings: DataSettings) -> list[str]:
    """Return the questions that are on both sides of the split of `settings`, which holds out a share by content."""
    assert isinstance(settings.validation, float)
    sides: tuple[dict[str, str], dict[str, str]] = {}, {}
    for row in read(settings, settings.train):
        if isinstance(row, Row):
            question = next(message["content"] for message in row.messages if message["role"] == "user")
            sides[is_held_out(row.messages, settings.validation)][normalise(question)] = question
    trained, held_out = sides
    return [question for key, question in held_out.items() if key in trained]
