"""What the example starts from beside a small open model: a recipe, and a firm's questions and answers."""

import shutil
from pathlib import Path

from ..smollm2 import packaged_file

RECIPE = Path(__file__).with_name("recipe.yaml")
DATA_PACKAGE, DATA_FILE = "zaragoza_construction_faq", "data/faq-en.csv"
DATA_CREDIT = '"Swedish Construction FAQ" by Zaragoza AB, CC BY 4.0 (https://github.com/zaragoza-ab/swedish-construction-faq-1000)'


def copy_data(file: Path) -> None:
    """Copy the firm's questions and answers to `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(packaged_file(DATA_PACKAGE, DATA_FILE), file)
