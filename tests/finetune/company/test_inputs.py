"""The questions and answers out of their package."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from seeklet.finetune.company.inputs import DATA_PACKAGE, copy_data


@pytest.mark.skipif(find_spec(DATA_PACKAGE) is None, reason="zaragoza-construction-faq is not installed")
def test_data_is_that_of_the_package(tmp_path: Path) -> None:
    copy_data(tmp_path / "new" / "faq.csv")
    lines = (tmp_path / "new" / "faq.csv").read_text(encoding="utf-8").splitlines()
    assert (lines[0], len(lines)) == ("id,category,q,a,sources", 504)
