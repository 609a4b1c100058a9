"""Round trips of whole checkpoints: transformers' and ours, every tensor bit by bit, on disk and in memory."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV3ForSequenceClassification,
    DeepseekV3Model,
)

from seeklet.modeling import (
    CheckpointError,
    SeekletForCausalLM,
    SeekletForSequenceClassification,
    SeekletForTokenClassification,
    SeekletModel,
    checkpoint_load,
)
from tests.modeling.nano import SIZES, build_ours, build_pair, draw_tokens
from tests.modeling.tensors import assert_same, config_of, load, read

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "queries projected directly": {"q_lora_rank": None},
    "no shared experts": {"n_shared_experts": 0},
    "dense layers only": {"first_k_dense_replace": 3},
    "attention bias": {"attention_bias": True},
    "tied embeddings": {"tie_word_embeddings": True},
}
STOCK_VARIANTS = [name for name in VARIANTS if name != "no shared experts"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", STOCK_VARIANTS)
def test_stock_to_ours_to_stock(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    stock, _ = build_pair(**VARIANTS[variant])
    stock.to(dtype).save_pretrained(tmp_path / "stock", max_shard_size="100KB")
    ours, info = load(tmp_path / "stock", output_loading_info=True)
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    assert ours.dtype == dtype
    ours.save_pretrained(tmp_path / "ours", max_shard_size="150KB")
    written, original = read(tmp_path / "ours"), read(tmp_path / "stock")
    for name in [name for name in written if name.endswith("e_score_correction_bias")]:
        # Ours stays fp32, which holds every bf16 number.
        assert written[name].dtype == torch.float32
        written[name] = written[name].to(original[name].dtype)
    assert_same(written, original)
    again, info = cast(Any, DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True))
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "stock").state_dict()
    assert_same(again.state_dict(), expected)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ours_to_ours_with_mtp(tmp_path: Path, variant: str, depth: int) -> None:
    model = build_ours(num_nextn_predict_layers=depth, **VARIANTS[variant])
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    again, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.config.num_nextn_predict_layers == depth
    assert_same(again.state_dict(), model.state_dict())
    assert config_of(tmp_path)["num_nextn_predict_layers"] == depth
    written = read(tmp_path)
    for layer in range(3, 3 + depth):
        embedding, head = written["model.embed_tokens.weight"], model.lm_head.weight
        assert torch.equal(written[f"model.layers.{layer}.embed_tokens.weight"], embedding)
        assert torch.equal(written[f"model.layers.{layer}.shared_head.head.weight"], head)
        assert f"model.layers.{layer}.mlp.gate.weight" in written or variant == "dense layers only"
    assert ("lm_head.weight" in written) == (variant != "tied embeddings")
    tied = again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert tied == (variant == "tied embeddings")


def test_ours_to_stock_to_ours(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path / "ours")
    stock = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours")
    ids = draw_tokens(2, 9)
    assert torch.allclose(stock(ids).logits, model.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    stock.save_pretrained(tmp_path / "stock")
    assert not any(".layers.3." in name for name in read(tmp_path / "stock"))
    # Stock drops the MTP module and still says that there is one.
    config = config_of(tmp_path / "stock")
    config["num_nextn_predict_layers"] = 1
    (tmp_path / "stock" / "config.json").write_text(json.dumps(config))
    again = load(tmp_path / "stock")
    assert again.config.num_nextn_predict_layers == 0
    expected = {name: tensor for name, tensor in model.state_dict().items() if ".layers.3." not in name}
    assert_same(again.state_dict(), expected)


@pytest.mark.parametrize("configured", [0, 1])
def test_mtp_modules_that_the_config_does_not_name_are_kept(tmp_path: Path, configured: int) -> None:
    model = build_ours(num_nextn_predict_layers=2)
    model.save_pretrained(tmp_path)
    config = config_of(tmp_path) | {"num_nextn_predict_layers": configured}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = load(tmp_path)
    assert again.config.num_nextn_predict_layers == 2
    assert_same(again.state_dict(), model.state_dict())


def test_a_copy_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path)
    tensors = read(tmp_path)
    tensors["model.layers.3.shared_head.head.weight"][5, 7] += 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    messages: list[str] = []
    monkeypatch.setattr(checkpoint_load.logger, "warning", messages.append)
    again = load(tmp_path)
    assert len(messages) == 1 and "model.layers.3.shared_head.head.weight differs" in messages[0]
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_tensor_is_cast_to_the_dtype_asked_for(tmp_path: Path, stored: torch.dtype, asked: torch.dtype) -> None:
    model = build_ours(num_nextn_predict_layers=1).to(stored)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, dtype=asked)
    for name, tensor in model.state_dict().items():
        dtype = torch.float32 if name.endswith("e_score_correction_bias") else asked
        assert again.state_dict()[name].dtype == dtype, name
        assert torch.equal(again.state_dict()[name], tensor.to(dtype)), name


def test_the_stock_loader_gives_the_same(tmp_path: Path) -> None:
    """A key_mapping takes transformers' own path, by its conversion of the registered mapping."""
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, key_mapping={"^nothing_is_called_so": "x"})
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.gpu
def test_onto_a_gpu(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path, block_fp8=True)
    for arguments in ({"dtype": torch.bfloat16}, {"dtype": torch.float32}, {"keep_fp8": True}):
        there = load(tmp_path, device_map="cuda", **arguments)
        assert {tensor.device.type for tensor in there.state_dict().values()} == {"cuda"}
        assert_same(there.cpu().state_dict(), load(tmp_path, **arguments).state_dict())


def test_layers_offloaded_to_disk_are_saved(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path / "m")
    devices = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    devices |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(4)}
    offloaded = load(tmp_path / "m", device_map=devices, offload_folder=tmp_path / "offload")
    assert offloaded.model.layers[1].mlp.experts.down_proj.is_meta
    offloaded.save_pretrained(tmp_path / "again")
    assert_same(read(tmp_path / "again"), read(tmp_path / "m"))


def test_a_state_dict_instead_of_files() -> None:
    model = build_ours()
    again = SeekletForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("save_class", [SeekletForCausalLM, DeepseekV3ForCausalLM])
def test_a_base_model_and_classifiers_from_a_language_model(tmp_path: Path, save_class: Any) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path / "m")
    if save_class is DeepseekV3ForCausalLM:
        save_class.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "m")
    expected = model.model.state_dict()
    base, info = load(tmp_path / "m", SeekletModel, output_loading_info=True)
    assert not info["missing_keys"]
    if save_class is DeepseekV3ForCausalLM:
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("layers.3.")}
    assert_same(base.state_dict(), expected)
    expected = {name: tensor for name, tensor in expected.items() if not name.startswith("layers.3.")}
    for model_class in (SeekletForSequenceClassification, SeekletForTokenClassification):
        classifier, info = load(tmp_path / "m", model_class, output_loading_info=True)
        assert info["missing_keys"] and all(name.startswith("score.") for name in info["missing_keys"])
        assert info["unexpected_keys"] == {"lm_head.weight"}
        assert classifier.score.weight.isfinite().all() and classifier.score.weight.std() > 0
        assert_same(classifier.model.state_dict(), expected)


def test_a_language_model_from_a_base_model_and_a_classifier(tmp_path: Path) -> None:
    base = build_ours(SeekletModel, num_nextn_predict_layers=1)
    base.save_pretrained(tmp_path / "base")
    assert "layers.3.embed_tokens.weight" in read(tmp_path / "base")
    model, info = load(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"}
    assert_same(model.model.state_dict(), base.state_dict())
    assert 0.5 < model.lm_head.weight.std() / SIZES["initializer_range"] < 2
    classifier = build_ours(SeekletForSequenceClassification, num_labels=5)
    classifier.save_pretrained(tmp_path / "classifier")
    assert config_of(tmp_path / "classifier")["num_nextn_predict_layers"] == 0
    stock = DeepseekV3ForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(stock.score.weight, classifier.score.weight)
    model, info = load(tmp_path / "classifier", output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == ({"lm_head.weight"}, {"score.weight"})
    stock_base = DeepseekV3Model(DeepseekV3Config(**SIZES))
    stock_base.save_pretrained(tmp_path / "stock")
    again = load(tmp_path / "stock", SeekletModel)
    assert_same(again.state_dict(), stock_base.state_dict())


class WithValueHead(SeekletForCausalLM):
    """A subclass as users write them, with a layer that no checkpoint has yet."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.value_head = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()


def test_a_subclass_with_a_layer_of_its_own(tmp_path: Path) -> None:
    model = build_ours()
    model.save_pretrained(tmp_path / "m")
    more, info = load(tmp_path / "m", WithValueHead, output_loading_info=True)
    assert info["missing_keys"] == {"value_head.weight"}
    assert more.value_head.weight.isfinite().all()
    more.save_pretrained(tmp_path / "more")
    assert_same(load(tmp_path / "more", WithValueHead).state_dict(), more.state_dict())


def test_sizes_that_differ_are_refused_or_initialised_anew(tmp_path: Path) -> None:
    model = build_ours()
    model.save_pretrained(tmp_path)
    changes: dict[str, Any] = {"vocab_size": 101, "moe_intermediate_size": 32, "n_routed_experts": 12}
    with pytest.raises(CheckpointError) as refusal:
        load(tmp_path, **changes)
    assert (
        "model.embed_tokens.weight in model.safetensors: found F32 (97, 40), expected a float dtype (101, 40)"
        in str(refusal.value)
    )
    again, info = load(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True, **changes)
    experts, shapes = "model.layers.1.mlp.experts", {key: (a, b) for key, a, b in info["mismatched_keys"]}
    assert shapes[f"{experts}.gate_up_proj"] == ((8, 48, 40), (12, 64, 40))
    assert shapes[f"{experts}.down_proj"] == ((8, 40, 24), (12, 40, 32))
    assert shapes["model.layers.2.mlp.gate.weight"] == ((8, 40), (12, 40))
    assert {"lm_head.weight", "model.embed_tokens.weight"} < shapes.keys()
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        if name in shapes:
            assert state[name].isfinite().all(), name
        else:
            assert torch.equal(state[name], tensor), name


def test_shards_and_index(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path, max_shard_size="64KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read(tmp_path).values())
    assert index["metadata"]["total_parameters"] == model.num_parameters()
    assert [file.name for file in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    for file in files:
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= 64_000 or len(tensors) == 1
    # A later save in one file leaves no shard behind, and the other way round.
    model.save_pretrained(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
    model.save_pretrained(tmp_path, max_shard_size=64_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(load(tmp_path).state_dict(), model.state_dict())


def test_variant_and_subfolder(tmp_path: Path) -> None:
    model, other = build_ours(), build_ours(seed=1)
    other.save_pretrained(tmp_path / "sub")
    model.save_pretrained(tmp_path / "sub", variant="fp32", max_shard_size="100KB")
    assert (tmp_path / "sub" / "model.safetensors.index.fp32.json").exists()
    again = load(tmp_path, subfolder="sub", variant="fp32")
    assert_same(again.state_dict(), model.state_dict())
    again = load(tmp_path, subfolder="sub")
    assert_same(again.state_dict(), other.state_dict())


def test_a_gathered_state_dict_is_what_is_saved(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    doubled = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=doubled)
    assert_same(load(tmp_path).state_dict(), doubled)


@pytest.mark.parametrize("size", ["5 apples", "GB", "-1GB"])
def test_a_shard_size_that_is_none(tmp_path: Path, size: str) -> None:
    with pytest.raises(ValueError, match=r"max_shard_size is .* allowed"):
        build_ours().save_pretrained(tmp_path, max_shard_size=size)


def test_the_auto_class_and_arguments_for_the_config(tmp_path: Path) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path)
    for auto in (AutoModelForCausalLM, SeekletForCausalLM):
        again = auto.from_pretrained(
            tmp_path, dtype="auto", attn_implementation="eager", use_cache=False, device_map="cpu"
        )
        assert type(again) is SeekletForCausalLM
        assert again.config.use_cache is False
        assert again.config._attn_implementation == "eager"
        assert again.dtype == torch.float32
        assert_same(again.state_dict(), model.state_dict())


def test_a_given_config_is_not_changed(tmp_path: Path) -> None:
    model = build_ours()
    model.save_pretrained(tmp_path)
    config = build_ours(num_nextn_predict_layers=1).config
    again = load(tmp_path, config=config)
    assert (again.config.num_nextn_predict_layers, config.num_nextn_predict_layers) == (0, 1)
