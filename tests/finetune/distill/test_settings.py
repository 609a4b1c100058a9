"""What the settings of distillation choose, and which of them mean nothing."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from seeklet.finetune.distill.on_policy import make_on_policy_trainer
from seeklet.finetune.distill.on_policy_trainer import SeekletDistillationTrainer
from seeklet.finetune.distill.settings import OnPolicySettings
from seeklet.finetune.distill.text_trainer import SeekletTextDistillationTrainer
from seeklet.finetune.errors import RecipeError
from tests.finetune.characters import build_tokenizer
from tests.finetune.distill.on_policy import PROMPTS, SIZES, build_teacher, make_config
from tests.modeling.nano import build_ours


@pytest.mark.parametrize(
    ("fields", "trainer_class", "text_loss"),
    [
        ({}, SeekletDistillationTrainer, None),
        ({"use_mtp": True}, SeekletDistillationTrainer, None),
        ({"alignment": "text"}, SeekletTextDistillationTrainer, "sampled"),
        ({"alignment": "text", "text_loss": "sorted"}, SeekletTextDistillationTrainer, "sorted"),
    ],
)
def test_the_trainer_is_the_one_asked_for(
    tmp_path: Path, fields: dict[str, Any], trainer_class: type, text_loss: str | None
) -> None:
    settings = OnPolicySettings(**fields)
    student = build_ours(**SIZES, num_nextn_predict_layers=1)
    data = Dataset.from_dict({"prompt": PROMPTS})
    tokenizers = build_tokenizer(), build_tokenizer()
    trainer: Any = make_on_policy_trainer(settings, student, build_teacher(), make_config(tmp_path), *tokenizers, data)
    assert type(trainer) is trainer_class
    assert getattr(trainer, "_text_loss", None) == text_loss and trainer._drafts == settings.use_mtp


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"text_loss is sorted, but alignment is tokens.*allowed: alignment: text"):
        OnPolicySettings(text_loss="sorted")
