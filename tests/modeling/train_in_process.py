"""A nano model trained by transformers' Trainer, to be run as a process: `FOLDER whole|interrupted|resumed`.

It appends each step's loss, exact, to `FOLDER/losses-<mode>.txt`, and Trainer writes its checkpoints into `FOLDER`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from seeklet.finetune.balance import RouterBiasCallback
from tests.modeling.nano import build_ours, draw_tokens

NUM_STEPS, SAVE_STEPS = 5, 2
# After checkpoint-2 is complete, before checkpoint-4 is begun.
INTERRUPT_STEP = 3
READY = "gone on"
# Three batches an epoch: the data of a run that resumes at step 2 begins in the middle of the first.
BATCH, NUM_ROWS, LENGTH = 4, 12, 12


class WaitForKill(TrainerCallback):
    """Says that the step is done, and waits; the end of the process that listens ends it, too."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait at INTERRUPT_STEP."""
        if state.global_step == INTERRUPT_STEP:
            print(READY, flush=True)
            sys.stdin.read()
            raise SystemExit("was to be killed")


def main(folder: Path, mode: str) -> None:
    """Train from the start, from the start until killed, or from the checkpoint at SAVE_STEPS."""
    torch.set_num_threads(1)
    losses = folder / f"losses-{mode}.txt"

    class RecordingTrainer(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            with losses.open("a") as file:
                file.write(f"{loss.item()!r}\n")
            return loss

    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=NUM_STEPS,
        save_steps=SAVE_STEPS,
        logging_steps=1,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-2,
        # A rate that differs at each step, so that the scheduler has to be restored, too.
        lr_scheduler_type="linear",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=3,
    )
    # Other weights where a checkpoint is to replace them. Dropout, so that the random state has to be restored.
    model = build_ours(
        seed=7 if mode == "resumed" else 0,
        num_nextn_predict_layers=1,
        bias_update_speed=0.01,
        attention_dropout=0.1,
    )
    rows = [{"input_ids": row, "labels": row} for row in draw_tokens(NUM_ROWS, LENGTH)]
    callbacks: list[TrainerCallback] = [RouterBiasCallback()]
    if mode == "interrupted":
        callbacks.append(WaitForKill())
    checkpoint = str(folder / f"checkpoint-{SAVE_STEPS}") if mode == "resumed" else None
    RecordingTrainer(model, settings, train_dataset=rows, callbacks=callbacks).train(resume_from_checkpoint=checkpoint)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
