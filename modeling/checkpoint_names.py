"""What tensors are called: in memory (a model's state dict) and on disk (published DeepSeek-V3 checkpoints).

Both names are the same but for these. N is a layer, E an expert, K = num_hidden_layers + k the MTP module k;
`experts` stands for `model.layers.N.mlp.experts`, H for the hidden size, I for the width of an expert:

| in memory                                    | on disk                                                   |
|----------------------------------------------|-----------------------------------------------------------|
| `experts.gate_up_proj[E, :I]` (I, H)         | `experts.E.gate_proj.weight`                              |
| `experts.gate_up_proj[E, I:]` (I, H)         | `experts.E.up_proj.weight`                                |
| `experts.down_proj[E]` (H, I)                | `experts.E.down_proj.weight`                              |
| `model.embed_tokens.weight`                  | the same, and a copy `model.layers.K.embed_tokens.weight` |
| `lm_head.weight`                             | the same, and a copy `model.layers.K.shared_head.head.weight` |

Where experts are kept in fp8, with M x N blocks of 128 x 128 per matrix:

| in memory                                    | on disk                                                   |
|----------------------------------------------|-----------------------------------------------------------|
| `experts.gate_up_proj_scale_inv[E, 0]` (M, N) | `experts.E.gate_proj.weight_scale_inv`                   |
| `experts.gate_up_proj_scale_inv[E, 1]` (M, N) | `experts.E.up_proj.weight_scale_inv`                     |
| `experts.down_proj_scale_inv[E]` (M, N)      | `experts.E.down_proj.weight_scale_inv`                    |

A `SeekletModel`, which has no head, has all names without `model.`, in memory and on disk.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

PREFIX = "model."
SCALE = "_scale_inv"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
# Task heads of transformers' classes: such a tensor may be there for another class than the one loaded.
HEADS = ("lm_head.", "score.", "classifier.", "qa_outputs.")

_FUSED = re.compile(rf"(?P<experts>.*mlp\.experts)\.(?P<projection>gate_up|down)_proj(?P<scale>{SCALE})?")
_EXPERT = re.compile(
    rf"(?P<experts>.*mlp\.experts)\.(?P<expert>\d+)\.(?P<projection>gate|up|down)_proj\.weight(?P<scale>{SCALE})?"
)
_LAYER = re.compile(r"(?:model\.)?layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_MTP_ONLY = re.compile(r"(enorm|hnorm|eh_proj|shared_head|embed_tokens)\.")
_MTP_COPY = re.compile(r"(?P<prefix>model\.)?layers\.\d+\.(?P<copy>embed_tokens|shared_head\.head)\.weight")
_FP8_WEIGHT = re.compile(
    r".*\.(self_attn\.(q|q_a|q_b|o)_proj|self_attn\.kv_b_proj|self_attn\.kv_a_proj_with_mqa"
    r"|mlp\.((experts\.\d+|shared_experts)\.)?(gate|up|down)_proj)\.weight"
)

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Slot:
    """One tensor on disk and the part of a state-dict tensor that it is: `state_dict[key][index]`."""

    disk_name: str
    key: str
    shape: tuple[int, ...]
    index: Index = ()


def slots(key: str, shape: Iterable[int]) -> list[Slot]:
    """Return where the state-dict tensor `key` of this shape is on disk: in one slot, or one or two an expert."""
    shape = tuple(shape)
    fused = _FUSED.fullmatch(key)
    if fused is None:
        return [Slot(key, key, shape)]
    experts, scale = fused["experts"], fused["scale"] or ""
    found = []
    for expert in range(shape[0]):
        for projection in ("gate", "up") if fused["projection"] == "gate_up" else ("down",):
            name = f"{experts}.{expert}.{projection}_proj.weight{scale}"
            index, part = _expert_index(expert, projection, bool(scale), shape)
            found.append(Slot(name, key, part, index))
    return found


def _expert_index(
    expert: int, projection: str, is_scale: bool, shape: tuple[int, ...]
) -> tuple[Index, tuple[int, ...]]:
    if projection == "down":
        return (expert,), shape[1:]
    half = 1 if projection == "up" else 0
    if is_scale:
        return (expert, half), shape[2:]
    width = shape[1] // 2
    return (expert, slice(half * width, (half + 1) * width)), (width, *shape[2:])


def published_names(key: str, num_experts: int | None = None) -> list[str]:
    """Return the names on disk of the state-dict tensor `key`.

    Args:
        key: as in `model.state_dict()`.
        num_experts: `n_routed_experts`, needed for the fused tensors of the routed experts.

    Raises:
        ValueError: `key` is a fused tensor and `num_experts` is not given.
    """
    if _FUSED.fullmatch(key) is None:
        return [key]
    if num_experts is None:
        raise ValueError(f"{key} holds all experts: num_experts is needed to name them")
    return [slot.disk_name for slot in slots(key, (num_experts, 2, 1, 1))]


def memory_name(disk_name: str) -> str | None:
    """Return the state-dict key of the tensor that is `disk_name` on disk; None for an MTP module's copy."""
    if _MTP_COPY.fullmatch(disk_name):
        return None
    expert = _EXPERT.fullmatch(disk_name)
    if expert is None:
        return disk_name
    projection = "down" if expert["projection"] == "down" else "gate_up"
    return f"{expert['experts']}.{projection}_proj{expert['scale'] or ''}"


def expert_number(disk_name: str) -> int | None:
    """Return the number of the routed expert whose tensor is `disk_name`, None for any other tensor."""
    expert = _EXPERT.fullmatch(disk_name)
    return None if expert is None else int(expert["expert"])


def layer_number(name: str) -> int | None:
    """Return the layer that a tensor belongs to, None for those outside the layers."""
    layer = _LAYER.fullmatch(name)
    return None if layer is None else int(layer["layer"])


def copy_source(disk_name: str) -> str | None:
    """Return the main tensor that `disk_name`, an MTP module's embedding or head, is a copy of; else None."""
    copy = _MTP_COPY.fullmatch(disk_name)
    if copy is None:
        return None
    return (copy["prefix"] or "") + EMBEDDING if copy["copy"] == "embed_tokens" else HEAD


def mtp_copies(keys: Iterable[str], num_hidden_layers: int, tied: bool = False) -> dict[str, str]:
    """Return {name on disk: state-dict key} of the copies of embedding and head that MTP modules have on disk.

    Args:
        keys: of a state dict. Without a head in it there is no copy of one, unless it is `tied` to the embedding.
        num_hidden_layers: layers from here on are MTP modules.
        tied: whether the embedding is the head.
    """
    keys = set(keys)
    names = {}
    prefix = PREFIX if PREFIX + EMBEDDING in keys else ""
    head = prefix + EMBEDDING if tied and HEAD not in keys else HEAD
    for layer in sorted({n for n in map(layer_number, keys) if n is not None and n >= num_hidden_layers}):
        sources = {"embed_tokens.weight": prefix + EMBEDDING, "shared_head.head.weight": head}
        names.update({f"{prefix}layers.{layer}.{name}": key for name, key in sources.items() if key in keys})
    return names


def true_mtp_depth(names: Iterable[str], num_hidden_layers: int, configured: int) -> int:
    """Return how many MTP modules a checkpoint with tensors `names` holds.

    0 when nothing stands behind the main layers: stock transformers drops MTP tensors and still says 1. When
    only part of the configured modules is there, the configured number, so that what is missing gets reported;
    when there are more, their number, so that none is dropped. Layers count as MTP modules by tensors that no
    other layer has; without these, layers too many are an error, not MTP modules.

    Example: 61 layers, configured 0, `model.layers.61.enorm.weight` there: 1.
    """
    behind: dict[int, bool] = {}
    for name in names:
        found = _LAYER.fullmatch(name)
        if found is not None and int(found["layer"]) >= num_hidden_layers:
            layer = int(found["layer"])
            behind[layer] = behind.get(layer, False) or _MTP_ONLY.match(found["rest"]) is not None
    if not behind:
        return 0
    modules = [layer for layer, is_mtp in behind.items() if is_mtp]
    return max([configured, *(layer - num_hidden_layers + 1 for layer in modules)])


def is_fp8_weight(disk_name: str) -> bool:
    """Return whether DeepSeek publishes this tensor in fp8: a projection of attention, MLP or an expert."""
    return _FP8_WEIGHT.fullmatch(disk_name) is not None
