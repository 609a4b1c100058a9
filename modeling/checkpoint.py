"""CheckpointMixin: `from_pretrained` and `save_pretrained` in the published DeepSeek-V3 format.

What tensors are called in memory and on disk is tabled in `checkpoint_names`. Beside the mixin this module offers
`published_names` and `memory_name`, which convert names both ways.

Loading reads the headers of all files first and refuses a checkpoint that does not fit, naming every tensor with
what was found and what was expected; then it streams each tensor straight into its place. Saving writes shard by
shard into a directory beside the old one and swaps the two, so that a killed save loses nothing.
"""

import os
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_utils import (
    LoadStateDictConfig,
    remove_tied_weights_from_state_dict,
    unwrap_model,
)
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import create_and_tag_model_card, hf_api
from transformers.utils.loading_report import LoadStateDictInfo
from transformers.utils.quantization_config import QuantizationConfigMixin

from .atomic_directory import replaced_directory
from .blockwise import Quantization, check_quantization
from .checkpoint_config import (
    asked_fp8,
    config_to_save,
    needed_dtype,
    own_config,
    set_true_mtp_depth,
    stored_names,
    take_block_fp8,
    without_adapter,
)
from .checkpoint_hooks import register_state_dict_hooks
from .checkpoint_load import BlockFp8Origin, load_plan, rules_of, streaming_obstacle
from .checkpoint_names import memory_name, published_names
from .checkpoint_plan import FP8, make_plan, read_headers, refuse
from .checkpoint_save import PUBLISHED_FP8, Layout, is_weights_file, parse_size, write_weights
from .errors import CheckpointError, ConfigError
from .expert_slices import ExpertSlice, keep_slice
from .fp8 import install_fp8
from .quantized import is_quantized
from .quantized_load import load_quantized

__all__ = ["CheckpointMixin", "memory_name", "published_names"]

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Request:
    """What `from_pretrained` was asked for and `_load_pretrained_model` cannot see."""

    quantization: dict[str, Any] | None = None
    keep_fp8: bool = False
    key_mapping: bool = False
    quantize: Quantization | None = None
    quantize_twice: bool = False
    experts: ExpertSlice | None = None


Model = TypeVar("Model", bound="CheckpointMixin")

# transformers calls `_load_pretrained_model` with arguments of its own, so ours travel beside them, for one call.
_REQUEST: ContextVar[_Request | None] = ContextVar("seeklet_load_request", default=None)


class CheckpointMixin(PreTrainedModel):
    """Loading and saving for the seeklet models; the first base class of all of them."""

    # Whether the class has MTP modules; those of a checkpoint are passed over by one that has not.
    _uses_mtp = True
    # Without the streaming loader (tensor parallel, for example) transformers meets these and is not to report them.
    _keys_to_ignore_on_load_unexpected: Any = (r"layers\.\d+\.(embed_tokens|shared_head\.head)\.weight",)
    # What a model remembers of the block-fp8 checkpoint it was loaded from.
    block_fp8_origin: BlockFp8Origin | None = None

    def post_init(self) -> None:
        """Finish construction, and let `load_state_dict` take the published names."""
        if self.base_model is self:
            register_state_dict_hooks(self)
        super().post_init()

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        quantization_config: QuantizationConfigMixin | dict | None = None,
        keep_fp8: bool = False,
        quantize: Quantization | None = None,
        quantize_twice: bool = False,
        expert_slice: ExpertSlice | None = None,
        **kwargs: Any,
    ) -> Model:
        """Return the model of a checkpoint, as transformers' `from_pretrained` does, and with its other arguments.

        Block-fp8 checkpoints, as DeepSeek publishes them, are dequantised to `dtype` (default: the config's, else
        bfloat16) while they are read. `num_nextn_predict_layers` of the config becomes the number of MTP modules that
        are really there.

        Args:
            pretrained_model_name_or_path: a directory or a name on the Hub.
            model_args: for the model's constructor.
            config: instead of the one that lies beside the weights.
            quantization_config: for transformers' quantisers (bitsandbytes, ...), as they are. For a block-fp8
                checkpoint, `FineGrainedFP8Config(dequantize=False)` means `keep_fp8=True`.
            keep_fp8: keep the weights of a block-fp8 checkpoint as they are, frozen, and dequantise them per use:
                the base for training adapters. Also by `AutoModelForCausalLM.from_pretrained(path, keep_fp8=True)`.
            quantize: nf4, fp4 or int8: hold the projections of attention, MLPs and routed experts so, frozen, each
                quantised by bitsandbytes as it is read: the base for training adapters in the least memory (QLoRA).
            quantize_twice: with `quantize`, hold the scale of each block in 8 bits, too (double quantisation).
            expert_slice: which of the routed experts to read and hold, for expert parallelism
                (`expert_exchange.ExpertExchange`); by default all. It must divide their number.
            kwargs: see transformers.

        Raises:
            CheckpointError: the files do not fit the config: a tensor is missing, is there but not expected, is
                truncated, or has another shape or dtype. Lists each with what was found and expected.
            ConfigError: the config has a field with a value that is not allowed, or the weights cannot be quantised.
        """
        if quantize is not None:
            check_quantization(quantize)
            others = {"keep_fp8": keep_fp8, "quantization_config": quantization_config, "expert_slice": expert_slice}
            if other := next((name for name, given in others.items() if given), None):
                raise ConfigError(f"quantize is {quantize!r} and {other} is given too; leave one of them out")
        elif quantize_twice:
            raise ConfigError("quantize_twice is given and quantize is not; allowed: both")
        if pretrained_model_name_or_path is None or kwargs.get("gguf_file") is not None:
            return super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                quantization_config=quantization_config,
                **kwargs,
            )
        source = without_adapter(pretrained_model_name_or_path)
        assert cls.config_class is not None
        config, kwargs = own_config(cls.config_class, source, config, kwargs)
        quantization = take_block_fp8(config)
        keep_fp8, quantization_config = asked_fp8(quantization, quantization_config, keep_fp8)
        if quantization is not None:
            kwargs = needed_dtype(config, kwargs)
        names = stored_names(source, config, kwargs)
        # A key_mapping may yet make MTP modules of what has another name.
        if names is not None and not kwargs.get("key_mapping"):
            set_true_mtp_depth(config, names, cls._uses_mtp)
        mapped = bool(kwargs.get("key_mapping"))
        token = _REQUEST.set(_Request(quantization, keep_fp8, mapped, quantize, quantize_twice, expert_slice))
        try:
            return super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                quantization_config=quantization_config,
                **kwargs,
            )
        finally:
            _REQUEST.reset(token)

    @staticmethod
    def _load_pretrained_model(
        model: "CheckpointMixin",
        state_dict: dict | None,
        checkpoint_files: list[str] | None,
        load_config: LoadStateDictConfig,
        expected_keys: list[str] | None = None,
    ) -> tuple[LoadStateDictInfo, dict | None]:
        """Check the files against the model, then stream them into it; transformers' own loader where it must be."""
        request = _REQUEST.get() or _Request()
        by_transformers = (model, state_dict, checkpoint_files, load_config, expected_keys)
        # `expected_keys` comes with an adapter, whose files hold nothing of the model itself.
        if state_dict is not None or checkpoint_files is None or expected_keys is not None:
            return PreTrainedModel._load_pretrained_model(*by_transformers)
        what = f"{load_config.pretrained_model_name_or_path} does not fit {type(model).__name__}"
        foreign = [file for file in checkpoint_files if not file.endswith(".safetensors")]
        if foreign:
            raise CheckpointError(f"{what}: found {foreign[0]}, expected safetensors files, which run no code")
        weight_map = (load_config.sharded_metadata or {}).get("weight_map")
        stored, problems = read_headers(checkpoint_files, weight_map)
        is_fp8 = any(tensor.dtype == FP8 for tensor in stored.values())
        # A pipeline stage holds only part of the layers.
        if load_config.is_quantized or request.key_mapping or getattr(model, "_pp_stage", None) is not None:
            refuse(problems, what)
            obstacle = "a transformers quantiser, a key_mapping or pipeline parallelism"
        else:
            if request.keep_fp8:
                _install_kept(model, {name for name, t in stored.items() if t.dtype == FP8}, load_config.dtype)
            rules = rules_of(model, load_config.ignore_mismatched_sizes, model._uses_mtp)
            plan, misfits = make_plan(model.state_dict(), stored, rules)
            refuse([*problems, *misfits], what)
            obstacle = streaming_obstacle(model, load_config, request.keep_fp8)
            if obstacle is None and request.quantize is not None:
                info = load_quantized(model, plan, load_config, request.quantize, request.quantize_twice)
                return info, None
            if obstacle is None and request.experts is not None:
                keep_slice(model, plan, request.experts)
            if obstacle is None:
                info, scales = load_plan(model, plan, load_config)
                if is_fp8:
                    model.block_fp8_origin = BlockFp8Origin(request.quantization or dict(PUBLISHED_FP8), scales)
                return info, None
        if request.quantize is not None:
            raise CheckpointError(f"{what}: quantize={request.quantize!r} cannot be had with {obstacle}")
        if request.experts is not None:
            raise CheckpointError(f"{what}: a part of the experts cannot be had with {obstacle}")
        if is_fp8:
            raise CheckpointError(f"{what}: block-fp8 cannot be loaded with {obstacle}; load and save it without first")
        return PreTrainedModel._load_pretrained_model(*by_transformers)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        distributed_checkpoint: bool = False,
        block_fp8: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint in the published format: one tensor per expert, MTP modules with their copies.

        A directory that holds a checkpoint changes from the old to the new one in one step, also when the save is
        killed; its other files (tokenizer, ...) stay. Memory needed beside the model: one tensor.

        Args:
            save_directory: where to; made if need be.
            is_main_process: whether this process writes.
            state_dict: instead of the model's own, as Trainer gathers it.
            push_to_hub: also upload the directory; `repo_id` (default: its name) and others in `kwargs`.
            max_shard_size: of one file: bytes, or text like "5GB".
            variant: as in `model.<variant>.safetensors`.
            token: for the Hub.
            save_peft_format: see transformers.
            save_original_format: False saves the names in memory, fused experts, by transformers' own code.
            distributed_checkpoint: save sharded, by transformers' own code, to resume training from.
            block_fp8: True writes weights in DeepSeek's block-fp8 format: those that were fp8 when loaded (blocks
                that did not change bit by bit), else those that DeepSeek publishes in fp8. False writes weights that
                are held in fp8 dequantised. By default weights are written as they are held.
            kwargs: for the upload, see transformers.

        Raises:
            CheckpointError: a weight to be written in fp8 holds an infinity or a NaN.
            NotADirectoryError: `save_directory` is a file.
            OSError: writing fails; the old checkpoint is still there.
        """
        if is_quantized(self):
            raise CheckpointError(
                f"{save_directory}: the model's weights are quantised, which the published format has no names for; "
                "save the adapter, and merge it into the checkpoint that was loaded"
            )
        by_transformers = getattr(self, "_hf_peft_config_loaded", False) or distributed_checkpoint
        if by_transformers or getattr(self, "hf_quantizer", None) is not None or not save_original_format:
            super().save_pretrained(
                save_directory,
                is_main_process=is_main_process,
                state_dict=state_dict,
                push_to_hub=push_to_hub,
                max_shard_size=max_shard_size,
                variant=variant,
                token=token,
                save_peft_format=save_peft_format,
                save_original_format=save_original_format,
                distributed_checkpoint=distributed_checkpoint,
                **kwargs,
            )
            return
        if token is not None:
            kwargs["token"] = token
        writes = self.should_save_on_this_rank(is_main_process)
        model, distributed = cast(CheckpointMixin, unwrap_model(self)), getattr(self.config, "distributed_config", None)
        tensors = dict(model.state_dict() if state_dict is None else state_dict)
        tensors = self.gather_sharded_state_dict_for_save(model, tensors, distributed, save_on_this_rank=writes)
        if writes:
            before = self._get_files_timestamps(save_directory) if os.path.isdir(save_directory) else {}
            upload = _make_repo(save_directory, kwargs) if push_to_hub else None
            _write(model, Path(save_directory), tensors, parse_size(max_shard_size), variant, block_fp8)
            if upload is not None:
                _push(self, save_directory, upload, before)
        self.barrier_after_gathered_checkpoint_save(distributed)


def _install_kept(model: PreTrainedModel, fp8_names: set[str], dtype: torch.dtype | None) -> None:
    """Make the modules of `model` whose weights are fp8 on disk keep them so."""
    prefix = model.base_model_prefix + "."
    # The checkpoint of a model with a head has the prefix in its names, that of one without has not.
    plain = {name.removeprefix(prefix) for name in fp8_names}
    replaced = install_fp8(model, lambda name: name.removeprefix(prefix) in plain, dtype or torch.bfloat16)
    if not replaced:
        raise CheckpointError("keep_fp8=True: found no fp8 weights, expected a block-fp8 checkpoint")
    for name in replaced:
        register_state_dict_hooks(model.get_submodule(name))


def _write(
    model: CheckpointMixin,
    folder: Path,
    tensors: dict[str, torch.Tensor],
    max_shard_bytes: int,
    variant: str | None,
    block_fp8: bool | None,
) -> None:
    tensors = {name: tensor for name, tensor in tensors.items() if name not in (model._keys_to_ignore_on_save or ())}
    tensors = remove_tied_weights_from_state_dict(tensors, model)
    if block_fp8 is None:
        block_fp8 = any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values())
    origin = model.block_fp8_origin
    layout = Layout(
        tensors,
        model.config.num_hidden_layers,
        block_fp8,
        origin,
        model.dtype,
        lambda key: load_offloaded_parameter(model, key),
        bool(model.all_tied_weights_keys),
    )
    quantization = dict(PUBLISHED_FP8) if origin is None else origin.config
    config = config_to_save(model, tensors, quantization if block_fp8 else None)
    with replaced_directory(folder, lambda name: is_weights_file(name, variant), CONFIG_NAME) as staging:
        config.save_pretrained(staging)
        if model.can_generate():
            model.generation_config.save_pretrained(staging)
        # Of what is written: the model itself may hold only part of the experts.
        total = sum(tensors[name].numel() for name, _ in model.named_parameters() if name in tensors)
        write_weights(staging, layout.groups(), max_shard_bytes, variant, total)


def _make_repo(save_directory: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the upload; the repository exists then."""
    repo_id = kwargs.pop("repo_id", None) or Path(os.path.abspath(save_directory)).name
    upload = {"commit_message": kwargs.pop("commit_message", None), "create_pr": kwargs.pop("create_pr", False)}
    upload["token"] = kwargs.get("token")
    return {**upload, "repo_id": hf_api().create_repo(repo_id, exist_ok=True, **kwargs).repo_id}


def _push(
    model: PreTrainedModel,
    save_directory: str | os.PathLike,
    upload: dict[str, Any],
    before: dict[str, float],
) -> None:
    card = create_and_tag_model_card(upload["repo_id"], model.model_tags, token=upload["token"])
    card.save(os.path.join(save_directory, "README.md"))
    model._upload_modified_files(save_directory, files_timestamps=before, **upload)
