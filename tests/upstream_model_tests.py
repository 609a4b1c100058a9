"""seeklet's classes under transformers' common tests; tests/run_upstream_tests.py runs this file."""

import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto

from seeklet.modeling import (
    SeekletConfig,
    SeekletForCausalLM,
    SeekletForSequenceClassification,
    SeekletForTokenClassification,
    SeekletModel,
    moe,
)

# isort: split
# The package `tests` of a transformers checkout, which the script puts on the path.
from tests.causal_lm_tester import CausalLMModelTest, CausalLMModelTester  # pyright: ignore[reportMissingImports]
from tests.test_expert_parallel_mixin import ExpertParallelTesterMixin  # pyright: ignore[reportMissingImports]

# A dense layer and one with experts; no two sizes that could be mistaken for each other are the same.
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 28,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "hidden_act": "silu",
}
# Where the tests look up what kind of model a class is.
KINDS = {
    "MODEL_MAPPING_NAMES": SeekletModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": SeekletForCausalLM,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": SeekletForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": SeekletForTokenClassification,
}
TOKENIZER_TEXT = "This is a test. Another test, something else: who are you voting for in 2020? My stomach hurts!"


def write_pipeline_models(folder: Path) -> dict[str, Any]:
    """Write a tiny model of every class with a tokenizer, as the pipeline tests look for them; return their index."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<bos>", "<eos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TOKENIZER_TEXT], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    config = SeekletConfig(**SIZES, vocab_size=len(fast), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    for model_class in KINDS.values():
        model_class(config).save_pretrained(folder / config.model_type / model_class.__name__)
        fast.save_pretrained(folder / config.model_type / model_class.__name__)
    names = {"tokenizer_classes": ["PreTrainedTokenizerFast"], "processor_classes": []}
    return {model_class.__name__: names for model_class in KINDS.values()}


@pytest.fixture(scope="module", autouse=True)
def known_to_upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the tests take our classes for what they are, where they go by tables of transformers' own models."""
    folder = tmp_path_factory.mktemp("pipelines")
    with pytest.MonkeyPatch.context() as patch:
        for table, model_class in KINDS.items():
            names = {**getattr(modeling_auto, table), SeekletConfig.model_type: model_class.__name__}
            patch.setattr(f"tests.test_modeling_common.{table}", names)
        # None: parallelism is tested for every model type, not just for a few.
        patch.setattr("tests.test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES", None)
        patch.setattr("tests.test_expert_parallel_mixin.EP_DISTRIBUTED_TEST_MODEL_TYPES", None)
        patch.setattr("tests.test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES", None)
        patch.setattr("tests.test_pipeline_mixin.tiny_model_summary", write_pipeline_models(folder))
        patch.setattr("tests.test_pipeline_mixin.TRANSFORMERS_TINY_MODEL_PATH", str(folder))
        yield


class SeekletModelTester(CausalLMModelTester):
    config_class = SeekletConfig
    base_model_class = SeekletModel
    causal_lm_class = SeekletForCausalLM
    sequence_classification_class = SeekletForSequenceClassification
    token_classification_class = SeekletForTokenClassification
    num_nextn_predict_layers = 0

    def __init__(self, parent: unittest.TestCase):
        super().__init__(parent, **SIZES)


class SeekletMTPModelTester(SeekletModelTester):
    num_nextn_predict_layers = 1


class SeekletModelTest(CausalLMModelTest, ExpertParallelTesterMixin, unittest.TestCase):
    model_tester_class = SeekletModelTester
    # Run for models of which the source file says "Copyright 2023" or later.
    test_can_init_all_missing_weights_before_2023 = True

    def test_moe_models_record_router_logits(self):
        # It looks for experts in the source file of the model's class; ours are in a file of their own.
        with mock.patch("inspect.getmodule", return_value=moe):
            super().test_moe_models_record_router_logits()


class SeekletMTPModelTest(SeekletModelTest):
    model_tester_class = SeekletMTPModelTester
