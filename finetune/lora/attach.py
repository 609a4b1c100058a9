"""Putting an adapter on a model, and the table of what it reaches."""

from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import ModulesToSaveWrapper
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from seeklet.modeling import SeekletPreTrainedModel
from seeklet.modeling.expert_slices import whole_sizes

from ..adapter_settings import AdapterSettings
from ..errors import AdapterError, RecipeError
from .config import SeekletLoraConfig
from .targets import find_targets, kind_of

DEFAULT = "default"
MAX_LISTED = 3


@dataclass(frozen=True)
class Adapted:
    """One line of the table: how many weight matrices of one kind have an adapter, and what that trains.

    Attributes:
        kind: a plain name, "other" for what has none, or "saved whole".
        matrices: their number; of routed experts, each expert's gate and up projection (one adapter) counts as one.
        rank: of the adapter; None for what is saved whole. Where ranks differ, the largest.
        parameters: those of the adapter, also where another one is being trained.
    """

    kind: str
    matrices: int
    rank: int | None
    parameters: int


def attach(model: PreTrainedModel | PeftModel, settings: AdapterSettings, adapter_name: str = DEFAULT) -> PeftModel:
    """Return `model` with a new adapter to train; everything else in it is frozen.

    The model is changed in place. On one that has an adapter already, a further one is added, not yet active.

    Raises:
        RecipeError: a target stands for nothing in this model, or cannot be adapted as asked.
        AdapterError: an adapter that is there already adapts other parameters.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = make_config(base, settings)
    if isinstance(model, PeftModel):
        if adapter_name in model.peft_config:
            raise RecipeError(f"an adapter called {adapter_name!r} is there; allowed: another name")
        add_further(model, config, adapter_name)
        return model
    adapted = get_peft_model(base, config, adapter_name)
    assert isinstance(adapted, PeftModel)
    return adapted


def add_further(model: PeftModel, config: LoraConfig, adapter_name: str) -> None:
    """Add an adapter to a model that has one; PEFT can wrap parameters (not modules) in one order for all of them.

    Raises:
        AdapterError: both adapt parameters, and not the same ones.
    """
    wanted = set(config.target_parameters or ())
    for other_name, other in model.peft_config.items():
        present = set(getattr(other, "target_parameters", None) or ())
        if wanted and present and wanted != present:
            parameters = sorted(wanted ^ present)
            more = f" and {len(parameters) - MAX_LISTED} more" if len(parameters) > MAX_LISTED else ""
            raise AdapterError(
                f"of the adapters {other_name!r} and {adapter_name!r} only one has {', '.join(parameters[:MAX_LISTED])}"
                f"{more}; allowed: the same routed experts and routers in all adapters of a model, or none"
            )
    model.add_adapter(adapter_name, config)


def make_config(model: nn.Module, settings: AdapterSettings) -> LoraConfig:
    """Return PEFT's config of the adapter that `settings` describe, for this model.

    Raises:
        RecipeError: as in `attach`.
    """
    targets = find_targets(model, settings.targets)
    ours = isinstance(model, SeekletPreTrainedModel)
    if targets.parameters and settings.dropout and not ours:
        raise RecipeError(
            f"adapter.dropout is {settings.dropout} for the parameters {', '.join(targets.parameters)} of a "
            f"{type(model).__name__}; allowed: 0, since PEFT cannot drop their input"
        )
    can_generate = isinstance(model, PreTrainedModel) and model.can_generate()
    return (SeekletLoraConfig if ours else LoraConfig)(
        r=settings.rank,
        # PEFT types it as an integer and divides it.
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        init_lora_weights=True if settings.init == "default" else settings.init,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        modules_to_save=list(settings.modules_to_save) or None,
        task_type="CAUSAL_LM" if can_generate else None,
    )


def adapted(model: PeftModel, adapter_name: str = DEFAULT) -> list[Adapted]:
    """Return what the adapter reaches, by kind, in the order of the layers."""
    base = model.get_base_model()
    found: dict[str, Adapted] = {}
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.r:
            kind, matrices, rank = kind_of(base, name) or "other", _num_matrices(module), module.r[adapter_name]
            parts = [getattr(module, layers) for layers in module.adapter_layer_names]
            tensors = [parts[i][adapter_name] for i in range(len(parts)) if adapter_name in parts[i]]
        elif isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            kind, matrices, rank = "saved whole", 1, None
            tensors = [module.modules_to_save[adapter_name]]
        else:
            continue
        parameters = sum(_num_parameters(tensor) for tensor in tensors)
        before = found.get(kind, Adapted(kind, 0, rank, 0))
        rank = None if rank is None else max(rank, before.rank or 0)
        found[kind] = Adapted(kind, before.matrices + matrices, rank, before.parameters + parameters)
    return list(found.values())


def adapted_table(model: PeftModel, adapter_name: str = DEFAULT) -> Table:
    """Return `adapted` as a table, with the share of all parameters that is trained."""
    rows = adapted(model, adapter_name)
    trained = sum(row.parameters for row in rows)
    share = trained / max(1, sum(size for _, size in whole_sizes(model)))
    table = Table(title=f"Adapter: {trained:,} trained parameters, {share:.2%} of all")
    for header in ("kind", "matrices", "rank", "trained parameters"):
        table.add_column(header, justify="left" if header == "kind" else "right")
    for row in rows:
        table.add_row(row.kind, f"{row.matrices:,}", "" if row.rank is None else str(row.rank), f"{row.parameters:,}")
    return table


def _num_matrices(layer: LoraLayer) -> int:
    return layer.num_experts if isinstance(layer, ParamWrapper) else 1


def _num_parameters(module: nn.Module | nn.Parameter) -> int:
    return sum(
        parameter.numel() for parameter in ([module] if isinstance(module, nn.Parameter) else module.parameters())
    )
