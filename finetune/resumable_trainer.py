"""A Trainer that may be killed at any moment: checkpoints are whole, and a run that goes on is the same bit by bit."""

import math
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    IntervalStrategy,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import CONFIG_NAME as MODEL_CONFIG

from seeklet.modeling import SeekletError, SeekletPreTrainedModel

from .checkpoints import STATE_FILE, checkpoint_path, last_checkpoint, new_checkpoint, rotate, written_by_all
from .engines import is_lost_process
from .errors import TrainingError
from .limits import MAX_SHARD_GB
from .lora.files import BIAS_FILE, load_adapter, read_router_biases, router_biases, save_adapter
from .read_once import buffers_sent_whole
from .sharded_checkpoints import (
    SCHEDULER_FILE,
    is_sharded,
    load_model_shards,
    load_optimizer_shards,
    load_whole_optimizer,
)


class CompleteCheckpoints(TrainerCallback):
    """Lets a checkpoint wait until all that is due at its step is measured: who goes on from it would not do so.

    What is logged are means over the steps since the last entry, so there is an entry before each checkpoint; and an
    evaluation at the end of an epoch comes before the checkpoint of the epoch's last step.
    """

    def __init__(self):
        self._is_due = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Put off a checkpoint in whose step an epoch ends."""
        assert state.epoch is not None
        evaluates = args.eval_strategy == IntervalStrategy.EPOCH and math.isclose(state.epoch, round(state.epoch))
        if control.should_save and evaluates:
            control.should_save, self._is_due = False, True
        control.should_log |= control.should_save
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for the checkpoint that was put off."""
        control.should_save |= self._is_due
        control.should_log |= control.should_save
        self._is_due = False
        return control


class ResumableTrainer(Trainer):
    """To be put before a Trainer of transformers or TRL.

    Differs from it in this: a checkpoint appears in one step and is deleted in one; adapters are saved with the router
    biases and loaded again; a loss that is no number ends the training; a run that is done does no further step when
    it is resumed.
    """

    def __init__(self, *args: Any, max_shard_gb: float = MAX_SHARD_GB, **kwargs: Any):
        """Save models in files of at most `max_shard_gb`; the rest as the Trainer behind this class takes it."""
        super().__init__(*args, **kwargs)
        self.add_callback(CompleteCheckpoints())
        self._max_shard_size = round(max_shard_gb * 10**9)
        # Trainer would delete file by file what is over the limit when training ends.
        self._save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        # Step, loss and gradient norm that nobody has looked at yet.
        self._unchecked: tuple[int, torch.Tensor] | None = None
        self._gradient_norm: torch.Tensor | float | None = None

    @property
    def checkpoint_folder(self) -> Path:
        """Where the checkpoints are."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def last_good(self) -> str:
        """Return, as the end of an error message, from where this run can go on."""
        last = last_checkpoint(self.checkpoint_folder)
        return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"

    def save_trained(self, folder: Path) -> None:
        """Write the model or the adapter with its tokenizer to `folder`, all of it or nothing; call it on every rank.

        Raises:
            TrainingError: writing fails.
        """
        if self.is_fsdp_enabled:
            assert self.accelerator.state.fsdp_plugin is not None
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        last = ADAPTER_CONFIG if isinstance(self._bare_model(), PeftModel) else MODEL_CONFIG
        with self._saving(folder), written_by_all(folder, last, self.is_world_process_zero()) as staging:
            self.save_model(str(staging), _internal_call=True)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward.

        Raises:
            TrainingError: the loss of the micro-batch before was no number.
        """
        # Of the one before: that is computed by now, so nothing waits for a GPU.
        self.check_finite()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._unchecked = self.state.global_step + 1, loss
        return loss

    def check_finite(self) -> None:
        """Check the last loss.

        Raises:
            TrainingError: it was no number.
        """
        if self._unchecked is None:
            return
        (step, loss), self._unchecked = self._unchecked, None
        if not torch.isfinite(loss).all():
            self._diverged(f"the loss is {loss.mean().item()}", step)

    def _check_gradient(self) -> None:
        norm = self._gradient_norm
        # Scaled gradients of fp16 overflow now and then, and the scaler skips that step.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(float(norm)):
            self._diverged(f"the norm of the gradient is {float(norm)}", self.state.global_step)

    def _diverged(self, what: str, step: int) -> None:
        rate = self._get_learning_rate() if self.lr_scheduler is not None else self.args.learning_rate
        raise TrainingError(
            f"step {step}: {what}, so training has failed at a learning rate of {rate:.3g}; {self.last_good()}. Begin "
            "a new run with a lower trainer.learning_rate or trainer.max_grad_norm, or with more trainer.warmup_steps"
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self._gradient_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._gradient_norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Where a run is resumed that was done, or was to stop, Trainer would do one more step before it notices.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.check_finite()
        self._check_gradient()
        output = super()._finalize_training(*args, **kwargs)
        # The last save may have been killed before it came to that.
        self._rotate()
        return output

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        counts = super()._init_training_state(*args, **kwargs)
        # Not the path of the day it was saved: the folder of the run may have moved since.
        self.state.best_model_checkpoint = self._best_checkpoint()
        return counts

    def _best_checkpoint(self) -> str | None:
        best = self.state.best_global_step
        path = checkpoint_path(self.checkpoint_folder, best) if best else None
        return str(path) if path is not None and path.is_dir() else None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_finite()
        self._check_gradient()
        self.store_flos()
        step, is_main = self.state.global_step, self.is_world_process_zero()
        target = checkpoint_path(self.checkpoint_folder, step)
        with self._saving(target), new_checkpoint(self.checkpoint_folder, step, is_main) as staging:
            self.save_model(str(staging), _internal_call=True)
            self._save_biases_beside_shards(staging)
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            is_best = self.state.best_global_step == step
            self.state.best_model_checkpoint = str(target) if is_best else self._best_checkpoint()
            if is_main:
                self.state.save_to_json(str(staging / STATE_FILE))
        self._rotate()

    def _rotate(self) -> None:
        if self.is_world_process_zero():
            rotate(self.checkpoint_folder, self._save_total_limit, self.state.best_global_step)

    @contextmanager
    def _saving(self, target: Path):
        """Turn what goes wrong while writing into an error that says what is still there."""
        try:
            yield
        except SeekletError:
            raise
        # PyTorch's writer raises a RuntimeError and safetensors its own error where a disk is full.
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_lost_process(error):
                raise
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            free = shutil.disk_usage(self.checkpoint_folder).free
            raise TrainingError(
                f"{target}: saving failed: {reason} ({free / 10**9:.1f} GB are free there); nothing half is left, and "
                f"{self.last_good()}. Make room and go on with --resume"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert output_dir is not None
        model = self._bare_model()
        if isinstance(model, PeftModel):
            save_adapter(model, output_dir, state_dict=state_dict)
        else:
            model.save_pretrained(output_dir, state_dict=state_dict, max_shard_size=self._max_shard_size)
        assert self.processing_class is not None
        self.processing_class.save_pretrained(output_dir)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if resume_from_checkpoint and self._is_for_shards(resume_from_checkpoint):
            # Before the model is sharded: it is loaded as it would be by one process.
            self._load_unsharded(str(resume_from_checkpoint))
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        reads_once = plugin is not None and plugin.cpu_ram_efficient_loading
        model: Any = self.model
        with buffers_sent_whole(self.accelerator, model) if reads_once else nullcontext():
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _is_for_shards(self, checkpoint: str) -> bool:
        """Return whether FSDP goes on from what processes without it have saved."""
        return self.is_fsdp_enabled and not is_sharded(Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or is_sharded(Path(checkpoint)) == self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        scheduler: Any = self.lr_scheduler
        load = load_whole_optimizer if self.is_fsdp_enabled else load_optimizer_shards
        load(self._bare_model(), optimizer, Path(checkpoint))
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_FILE, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_for_shards(resume_from_checkpoint):
            return
        if not self.is_fsdp_enabled and is_sharded(Path(resume_from_checkpoint)):
            load_model_shards(self._bare_model(), Path(resume_from_checkpoint))
            self._load_biases_beside_shards(Path(resume_from_checkpoint))
            return
        if not self._load_whole(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            self._load_biases_beside_shards(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        if not self._load_whole(self.state.best_model_checkpoint):
            super()._load_best_model()
            self._load_biases_beside_shards(Path(self.state.best_model_checkpoint))

    def _load_whole(self, checkpoint: str) -> bool:
        """Load an adapter, or a model that is not seeklet's, and return True; or False where Trainer has to."""
        model = self._bare_model()
        # FSDP and DeepSpeed keep files of their own in a checkpoint; seeklet's models read published names themselves.
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or isinstance(model, SeekletPreTrainedModel):
            return False
        self._load_unsharded(checkpoint)
        return True

    def _load_unsharded(self, checkpoint: str) -> None:
        model = self._bare_model()
        if isinstance(model, PeftModel):
            load_adapter(model, checkpoint)
            return
        # Trainer matches the names in the file with those in memory, and experts, which are fused in memory only, would
        # stay as they are without an error (transformers issue 48805).
        saved = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())

    def _save_biases_beside_shards(self, folder: Path) -> None:
        # Of a model with an adapter, FSDP and DeepSpeed save what is trained, which router biases are not.
        model = self._bare_model()
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if isinstance(model, PeftModel) and is_sharded and self.is_world_process_zero():
            biases = {name: bias.cpu().contiguous() for name, bias in router_biases(model.get_base_model()).items()}
            if biases:
                save_file(biases, folder / BIAS_FILE)

    @torch.no_grad()
    def _load_biases_beside_shards(self, folder: Path) -> None:
        model = self._bare_model()
        if isinstance(model, PeftModel):
            there = router_biases(model.get_base_model())
            for name, bias in read_router_biases(folder).items():
                there[name].copy_(bias)

    def _bare_model(self) -> PeftModel | PreTrainedModel:
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model
