"""`seeklet.kernelize`: fused layers in, the same numbers out, a table that says so, and the way back."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, KernelConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

import seeklet
from seeklet.modeling.kernelize import kernel_mapping
from seeklet.modeling.kernels import launch, layers
from seeklet.modeling.norm import SeekletRMSNorm
from tests.kernels.interpreter import interpreted
from tests.modeling.nano import build_ours, draw_tokens

# Layers that keep fp8 have their tests in test_fp8.py.
HOOKS = sorted(name for name in vars(layers) if name.startswith("Seeklet") and not name.startswith("SeekletFp8"))


def step(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Return the loss and every gradient of a training step."""
    model.train().zero_grad()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def answer(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Return the logits of a prefill and of a decode step."""
    model.eval()
    with torch.no_grad():
        prefill = model(tokens[:, :-1], use_cache=True)
        return [prefill.logits, model(tokens[:, -1:], past_key_values=prefill.past_key_values).logits]


def replaced(model: nn.Module) -> set[str]:
    """Return the hooks whose layers run a forward that is not their own."""
    found: list[Any] = [layer for layer in model.modules() if "forward" in vars(layer)]
    return {type(layer).__name__ for layer in found if layer.forward.__func__ is not type(layer).forward}


def test_training_with_kernels_gives_the_same_numbers() -> None:
    model, tokens = build_ours(num_nextn_predict_layers=1), draw_tokens(2, 8)
    expected = [tensor.clone() for tensor in step(model, tokens)]
    with interpreted() as launched:
        table = seeklet.kernelize(model, quiet=True)
        assert (
            replaced(model) == {row.layer for row in table if row.kernel} == set(HOOKS) & {row.layer for row in table}
        )
        actual = step(model, tokens)
    assert launched["rms_norm.forward_kernel"] == launched["rms_norm.backward_kernel"] > 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_generation_with_kernels_gives_the_same_tokens() -> None:
    model, tokens = build_ours().eval(), draw_tokens(1, 5)
    expected = model.generate(tokens, max_new_tokens=4, do_sample=False)
    with interpreted() as launched:
        seeklet.kernelize(model, "inference", quiet=True)
        assert torch.equal(model.generate(tokens, max_new_tokens=4, do_sample=False), expected)
    assert launched["rms_norm.forward_kernel"] > 0


@pytest.mark.parametrize("hook", HOOKS)
def test_each_layer_runs_its_kernel_and_gives_what_its_own_forward_gives(hook: str) -> None:
    """One hook at a time: a prefill, a decode step and a training step."""
    model = build_ours(num_nextn_predict_layers=1)
    runs = [answer, step] if getattr(layers, hook).has_backward else [answer]
    expected = [[tensor.clone() for tensor in run(model, draw_tokens(2, 8))] for run in runs]
    with interpreted() as launched:
        for layer in model.modules():
            if type(layer).__name__ == hook:
                seeklet.kernelize(layer, "inference", device="cpu", quiet=True)
        assert replaced(model) == {hook}
        actual = [run(model, draw_tokens(2, 8)) for run in runs]
    assert launched
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_with_gradient_checkpointing() -> None:
    model, tokens = build_ours(), draw_tokens(1, 6)
    expected = [tensor.clone() for tensor in step(model, tokens)]
    with interpreted() as launched:
        seeklet.kernelize(model, "training", quiet=True)
        step(model, tokens)
        without = launched["rms_norm.forward_kernel"]
        model.gradient_checkpointing_enable()
        actual = step(model, tokens)
    assert launched["rms_norm.forward_kernel"] - without > without
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_compiled_as_one_graph() -> None:
    model, tokens = build_ours().eval(), draw_tokens(1, 6)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        with interpreted() as launched:
            seeklet.kernelize(model, "inference", quiet=True)
            compiled = torch.compile(
                lambda tokens: model(tokens, use_cache=False).logits, backend="eager", fullgraph=True
            )
            actual = compiled(tokens)
    assert launched["rms_norm.forward_kernel"] > 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_unkernelize_gives_every_layer_its_own_forward_back() -> None:
    model, tokens = build_ours(), draw_tokens(1, 5)
    expected = [tensor.clone() for tensor in step(model, tokens)]
    with interpreted():
        seeklet.kernelize(model, quiet=True)
        assert replaced(model)
    seeklet.unkernelize(model)
    assert replaced(model) == set()
    actual = step(model, tokens)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_without_a_gpu_every_layer_keeps_its_own_forward_and_the_table_says_why(capsys: Any) -> None:
    model = build_ours()
    table = seeklet.kernelize(model)
    assert replaced(model) == set()
    assert {row.kernel for row in table} == {None}
    shown = capsys.readouterr().out
    assert shown == f"{table}\n"
    [line] = [line for line in shown.splitlines() if line.startswith("SeekletRMSNorm ")]
    norms = sum(type(layer) is SeekletRMSNorm for layer in model.modules())
    assert line.split(None, 3) == [
        "SeekletRMSNorm",
        str(norms),
        "PyTorch",
        "the kernel needs a CUDA GPU; the model is on cpu",
    ]


def test_a_gpu_that_is_not_there_or_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def why() -> str:
        [row] = [
            row for row in seeklet.kernelize(build_ours(), device="cuda", quiet=True) if row.layer == "SeekletRMSNorm"
        ]
        assert row.kernel is None
        return row.why

    assert why() == "the kernel needs a CUDA GPU, and torch sees none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert why() == "the kernel needs compute capability 8.0; this GPU has 7.5"


@pytest.mark.parametrize(
    ("settings", "mode", "says"),
    [
        ({}, "training", ("", "")),
        ({"attn_implementation": "eager"}, "inference", ("not called with attn_implementation='eager'",) * 2),
        ({"attention_dropout": 0.1}, "training", ("not called in training with attention_dropout=0.1",) * 2),
        ({"attention_dropout": 0.1}, "inference", ("", "")),
    ],
)
def test_the_table_tells_which_settings_leave_a_kernel_out(
    settings: dict[str, Any], mode: Any, says: tuple[str, str]
) -> None:
    implementation = settings.pop("attn_implementation", "sdpa")
    model = build_ours(**settings)
    model.set_attn_implementation(implementation)
    with interpreted() as launched:
        rows = {row.layer: row for row in seeklet.kernelize(model, mode, quiet=True)}
        run = step if mode == "training" else answer
        run(model, draw_tokens(1, 5))
    called = launched["mla_attention.forward_kernel"], launched["mla_decode.split_kernel"]
    for layer, text, calls in zip(("SeekletMLAAttention", "SeekletMLADecode"), says, called, strict=True):
        assert rows[layer].kernel == "fused (Triton)" and rows[layer].why.partition(";")[0] == text
        assert not (text and calls)


def test_kernels_that_are_not_deterministic_are_left_out_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "NOT_DETERMINISTIC", frozenset({"SeekletRMSNorm"}))
    model = build_ours()
    with interpreted():
        seeklet.kernelize(model, deterministic=True, quiet=True)
        assert "SeekletRMSNorm" not in replaced(model)
        seeklet.kernelize(model, quiet=True)
        assert "SeekletRMSNorm" in replaced(model)


def test_kernels_without_backward_are_for_inference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.SeekletRMSNorm, "has_backward", False)
    model = build_ours()
    with interpreted():
        [row] = [row for row in seeklet.kernelize(model, "training", quiet=True) if row.layer == "SeekletRMSNorm"]
        assert row.kernel is None and "no backward pass" in row.why
        assert "SeekletRMSNorm" not in replaced(model)
        seeklet.kernelize(model, "inference", quiet=True)
        assert "SeekletRMSNorm" in replaced(model)


class Broken(tuple):
    """A kernel repository that is not there."""

    def load(self) -> type[nn.Module]:
        raise FileNotFoundError("no such kernel")


def test_a_kernel_that_fails_to_load_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no such kernel"):
        seeklet.kernelize(build_ours(), mapping={"SeekletRMSNorm": {"cpu": Broken()}}, quiet=True)


def test_a_mapping_of_ones_own_goes_first() -> None:
    class Twice(nn.Module):
        has_backward = True
        can_torch_compile = True

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 2 * hidden_states

    class Repository(tuple[str, ...]):
        def load(self) -> type[nn.Module]:
            return Twice

    model = build_ours()
    own = {"SeekletRMSNorm": {"cpu": Repository(("twice",))}}
    table = seeklet.kernelize(model, mapping=own, quiet=True)
    [row] = [row for row in table if row.kernel]
    assert row.layer == "SeekletRMSNorm" and row.kernel == "('twice',)"
    x = torch.randn(3, model.config.hidden_size)
    assert torch.equal(model.model.norm(x), 2 * x)


def test_layers_of_other_makers_are_left_alone() -> None:
    other = nn.Sequential(DeepseekV3RMSNorm(8), SeekletRMSNorm(8))
    with interpreted():
        table = seeklet.kernelize(other, quiet=True)
    assert [row.layer for row in table] == ["SeekletRMSNorm"]


def test_hooks_of_accelerate_stay() -> None:
    """Where a model is spread over devices, they bring the inputs to the layer's."""
    hooks = pytest.importorskip("accelerate.hooks")
    norm: Any = SeekletRMSNorm(8)
    seen = []

    class Recorder(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(module)
            return args, kwargs

    hooks.add_hook_to_module(norm, Recorder())
    x = torch.randn(2, 8)
    expected = norm(x)
    with interpreted():
        seeklet.kernelize(norm, quiet=True)
        torch.testing.assert_close(norm(x), expected)
        assert norm._old_forward.__func__ is layers.SeekletRMSNorm.forward
    seeklet.unkernelize(norm)
    torch.testing.assert_close(norm(x), expected)
    assert len(seen) == 3


@pytest.mark.parametrize(("bad", "says"), [({"mode": "train"}, "mode is 'train'"), ({}, "no parameters")])
def test_what_cannot_be_is_told(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        seeklet.kernelize(nn.Identity(), **bad)


def test_use_kernels_of_transformers_takes_them_at_every_change_of_mode(tmp_path: Any) -> None:
    build_ours().save_pretrained(tmp_path)
    with interpreted() as launched:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, use_kernels=True)
        assert model.use_kernels and replaced(model) == set(HOOKS) & {type(layer).__name__ for layer in model.modules()}
        step(model, draw_tokens(1, 5))
        assert launched["rms_norm.backward_kernel"] > 0
    model.set_use_kernels(False)
    assert replaced(model) == set() and not model.use_kernels


def test_use_kernels_with_a_configuration_of_ones_own_keeps_seeklets(tmp_path: Any) -> None:
    build_ours().save_pretrained(tmp_path)
    with interpreted():
        model = AutoModelForCausalLM.from_pretrained(tmp_path, use_kernels=True, kernel_config=KernelConfig({}))
        assert replaced(model) == set(HOOKS) & {type(layer).__name__ for layer in model.modules()}


def test_the_mapping_names_every_layer_for_every_device() -> None:
    mapping = kernel_mapping()
    assert sorted(name for name in mapping if not name.startswith("SeekletFp8")) == HOOKS
    assert {device.type for devices in mapping.values() for device in devices} == set(launch.TRITON_DEVICES)


def test_operators_without_a_hook_take_kernels_until_unkernelize(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes a kernel that nobody has asked for."""
    x, model = torch.ones(1), build_ours()
    monkeypatch.setattr(launch, "TRITON_DEVICES", frozenset({"cpu"}))
    assert not launch.runs_triton(x)
    seeklet.kernelize(model, quiet=True)
    # As `from_pretrained` of another model does.
    build_ours().set_use_kernels(False)
    assert launch.runs_triton(x)
    seeklet.unkernelize(model)
    assert not launch.runs_triton(x)


@pytest.mark.gpu
def test_on_a_gpu_training_and_decoding_give_the_same_numbers() -> None:
    model, tokens = build_ours(num_nextn_predict_layers=1).cuda(), draw_tokens(2, 8).cuda()
    expected = [[tensor.clone() for tensor in run(model, tokens)] for run in (answer, step)]
    table = seeklet.kernelize(model, "training", quiet=True)
    assert replaced(model) == {row.layer for row in table if row.kernel} >= {"SeekletRMSNorm", "SeekletSwiGLU"}
    torch.testing.assert_close([run(model, tokens) for run in (answer, step)], expected, rtol=1e-3, atol=1e-4)
    compiled = torch.compile(model.eval(), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits, rtol=1e-3, atol=1e-4
        )
