"""The `kernels` library finds every hook layer, replaces its forward, and gives the model's own back."""

import functools
import inspect
from collections import Counter
from typing import Any

import pytest
import torch
from kernels import Mode, kernelize, use_kernel_mapping
from torch import nn

from seeklet.modeling.attention import SeekletMLAAttention, SeekletMLADecode
from seeklet.modeling.kernels import layers
from seeklet.modeling.moe import SeekletExperts, SeekletRouter, SeekletSwiGLU
from seeklet.modeling.norm import SeekletAddRMSNorm, SeekletRMSNorm
from seeklet.modeling.rope import SeekletApplyRope
from tests.modeling.nano import build_ours, draw_tokens

HOOKED = sorted(
    {type(m) for m in build_ours(num_nextn_predict_layers=1).modules() if hasattr(m, "kernel_layer_name")},
    key=lambda layer: layer.__name__,
)


class InProcessLayer:
    """What a mapping needs of a kernel repository: `load()` gives a layer class."""

    def __init__(self, layer: type[nn.Module]):
        self.layer = layer

    def load(self) -> type[nn.Module]:
        return self.layer


def counting_layer(layer: type[nn.Module], calls: Counter[str]) -> type[nn.Module]:
    """Return a pure layer that does what `layer` does, and counts its calls in `calls`."""
    original: Any = layer.forward

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        calls[layer.__name__] += 1
        return original(self, *args, **kwargs)

    body = {"forward": forward, "has_backward": True, "can_torch_compile": True}
    return type(f"Counting{layer.__name__}", (nn.Module,), body)


def count_on_cpu(calls: Counter[str]) -> dict[str, Any]:
    """Return a mapping of every hook name, which is the layer's own, to its counting layer."""
    return {layer.__name__: {"cpu": InProcessLayer(counting_layer(layer, calls))} for layer in HOOKED}


def run(model: Any) -> list[torch.Tensor]:
    """Return logits of a prefill and of a decode step, then the loss and every gradient of a training step."""
    tokens = draw_tokens(2, 8)
    model.eval()
    with torch.no_grad():
        prefill = model(tokens[:, :7], use_cache=True)
        decode = model(tokens[:, 7:], past_key_values=prefill.past_key_values)
    model.train().zero_grad()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [prefill.logits, decode.logits, loss.detach(), *(gradient.clone() for gradient in gradients)]


@pytest.mark.parametrize("layer", HOOKED, ids=lambda layer: layer.__name__)
def test_layer_carries_its_own_name_as_hook(layer: type[nn.Module]) -> None:
    assert getattr(layer, "kernel_layer_name", None) == layer.__name__


def test_every_operation_with_a_kernel_has_a_hook() -> None:
    operations = {SeekletRMSNorm, SeekletAddRMSNorm, SeekletApplyRope, SeekletSwiGLU, SeekletRouter, SeekletExperts}
    assert operations | {SeekletMLAAttention, SeekletMLADecode} <= set(HOOKED)
    names = {name for name in vars(layers) if name.startswith("Seeklet") and not name.startswith("SeekletFp8")}
    assert {layer.__name__ for layer in HOOKED} - names == {"SeekletLinear"}


@pytest.mark.parametrize("layer", HOOKED, ids=lambda layer: layer.__name__)
def test_forward_has_a_signature_a_kernel_can_repeat(layer: type[nn.Module]) -> None:
    """No *args: `kernels` compares number and kind of the parameters."""
    kinds = {parameter.kind for parameter in inspect.signature(layer.forward).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("mode", [Mode.INFERENCE, Mode.TRAINING, Mode.TRAINING | Mode.TORCH_COMPILE])
def test_kernelize_replaces_every_hook_and_results_stay_equal(mode: Mode) -> None:
    model = build_ours(num_nextn_predict_layers=1)
    expected = run(model)
    calls: Counter[str] = Counter()
    with use_kernel_mapping(count_on_cpu(calls), inherit_mapping=False):
        kernelize(model, mode=mode, device="cpu", use_fallback=False)
    actual = run(model)
    assert calls.keys() == {layer.__name__ for layer in HOOKED}
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_a_replaced_forward_is_what_counts() -> None:
    """A kernel that is wrong shows in the result."""
    model = build_ours().eval()
    tokens = draw_tokens(1, 5)

    class Doubled(nn.Module):
        has_backward = True
        can_torch_compile = True

        def forward(self, gate, up):
            return 2 * nn.functional.silu(gate) * up

    with torch.no_grad():
        before = model(tokens).logits
        with use_kernel_mapping({"SeekletSwiGLU": {"cpu": InProcessLayer(Doubled)}}, inherit_mapping=False):
            kernelize(model, mode=Mode.INFERENCE, device="cpu")
        during = model(tokens).logits
        with use_kernel_mapping({}, inherit_mapping=False):
            kernelize(model, mode=Mode.INFERENCE, device="cpu")
        after = model(tokens).logits
    assert (during - before).abs().max() > 1e-2
    assert torch.equal(after, before)


def test_kernelizing_without_a_mapping_restores_the_models_own_forward() -> None:
    model = build_ours(num_nextn_predict_layers=1)
    calls: Counter[str] = Counter()
    with use_kernel_mapping(count_on_cpu(calls), inherit_mapping=False):
        kernelize(model, mode=Mode.TRAINING, device="cpu", use_fallback=False)
    with use_kernel_mapping({}, inherit_mapping=False):
        kernelize(model, mode=Mode.TRAINING, device="cpu")
    run(model)
    assert calls == Counter()


def test_a_missing_kernel_is_an_error_where_no_fallback_is_allowed() -> None:
    mapping = count_on_cpu(Counter())
    del mapping["SeekletRouter"]
    with (
        use_kernel_mapping(mapping, inherit_mapping=False),
        pytest.raises(ValueError, match="No layer mapping for `SeekletRouter`"),
    ):
        kernelize(build_ours(), mode=Mode.INFERENCE, device="cpu", use_fallback=False)
