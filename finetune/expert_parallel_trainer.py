"""A ResumableTrainer whose processes may share the routed experts: one checkpoint comes out, as of one process."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from .errors import TrainingError
from .expert_parallel import SharedExperts
from .lora.files import load_adapter
from .resumable_trainer import ResumableTrainer
from .sharded_checkpoints import OPTIMIZER_FILE, SCHEDULER_FILE, is_sharded


class ExpertParallelTrainer(ResumableTrainer):
    """What changes where a subclass has set `_experts`: gradients, their norm, and checkpoints, which are whole.

    Any number of processes goes on from such a checkpoint, sharing the experts or not.
    """

    _experts: SharedExperts | None = None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward; when a step's last gradients are there, take the mean of those of the experts."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._experts is not None and self.accelerator.sync_gradients:
            self._experts.average_gradients(model.parameters())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what Trainer has measured, and to how many processes and nodes a token was sent."""
        if self._experts is not None and "loss" in logs:
            spread = self._experts.exchange.take_spread()
            if spread is not None:
                logs["routing/processes_per_token"] = spread[0]
                if self._experts.exchange.num_nodes > 1:
                    logs["routing/nodes_per_token"] = spread[1]
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model or the adapter as one process would."""
        if self._experts is None:
            super().save_model(output_dir, _internal_call)
            return
        state = self._experts.whole_state(self._bare_model())
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return super()._clip_grad_norm(model) if self._experts is None else self._clip(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self._experts is not None and grad_norm is None:
            grad_norm = self._clip(model, float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _clip(self, model: nn.Module, max_norm: float) -> torch.Tensor:
        assert self._experts is not None
        self.accelerator.unscale_gradients()
        return self._experts.clip_gradients(model.parameters(), max_norm)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._experts is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self._experts.whole_optimizer_state(self._bare_optimizer())
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._experts is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder, optimizer = Path(checkpoint), self._bare_optimizer()
        scheduler: Any = self.lr_scheduler
        whole = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", mmap=True, weights_only=True)
        optimizer.load_state_dict(self._experts.own_optimizer_state(whole, optimizer))
        scheduler.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._experts is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_part(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._experts is None:
            super()._load_best_model()
            return
        assert self.state.best_model_checkpoint is not None
        self._load_part(self.state.best_model_checkpoint)

    def _load_part(self, checkpoint: str) -> None:
        """Load of a whole checkpoint what this process holds.

        Raises:
            TrainingError: FSDP's processes have saved it.
        """
        assert self._experts is not None
        if is_sharded(Path(checkpoint)):
            raise TrainingError(
                f"{checkpoint} was saved by FSDP in shards, and trainer.expert_parallel is {self._experts.slice.size}; "
                "go on with FSDP, or with trainer.expert_parallel: 1"
            )
        model = self._bare_model()
        if isinstance(model, PeftModel):
            load_adapter(model, checkpoint, cut=self._experts.own_factor)
            return
        saved = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=model.dtype, expert_slice=self._experts.slice, local_files_only=True
        )
        model.load_state_dict(saved.state_dict())

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer
