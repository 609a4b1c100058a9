"""Training on a model's own samples: how they are drawn, and in what order prompts come."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from trl.models.utils import unwrap_model_for_generation

from seeklet.modeling import GenerationError, SeekletPreTrainedModel

from .epoch_sampler import EpochRepeatSampler
from .resumable_trainer import ResumableTrainer
from .sampling import Samples, Sampling, sample
from .vllm_weights import send_published_names


class SamplingTrainer(ResumableTrainer):
    """To be put before a trainer of TRL that samples the model it trains.

    Samples read each prompt once and let ended rows leave the batch; all processes go on until the last has ended
    where they gather parameters together. A run that is resumed has the prompts that it would have had.
    """

    # Of TRL's trainers.
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float | None
    max_completion_length: int | None
    eos_token_ids: list[int]
    generation_kwargs: Any
    vllm_generation: Any
    _tokenizer: Any
    _dist: Any

    def draw_samples(
        self, prompts: Sequence[Sequence[int]], num_samples: int, drafts: bool, records_routing: bool = False
    ) -> Samples:
        """Return `num_samples` completions of each of `prompts`, drawn as TRL's config says.

        Raises:
            TrainingError: the model has diverged.
        """
        model: Any = self.model
        if model.training:
            # Of what is no number any more nothing can be sampled.
            self.check_finite()
            self._check_gradient()
        assert self.max_completion_length is not None
        sampling = Sampling(
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            use_mtp=drafts,
        )
        try:
            with self._sampled_model() as model:
                return sample(
                    model,
                    prompts,
                    num_samples,
                    sampling,
                    self.eos_token_ids,
                    self._tokenizer.pad_token_id,
                    records_routing=records_routing,
                    synced=self.is_fsdp_enabled or self.is_deepspeed_enabled,
                )
        except GenerationError as error:
            self._diverged(str(error), self.state.global_step)
            raise

    @contextmanager
    def _sampled_model(self) -> Iterator[Any]:
        """Give the model without wrappers, gradient checkpointing and dropout."""
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=getattr(self.args, "ds3_gather_for_generation", True),
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=checkpointing,
        ) as model:
            was_training = model.training
            model.eval()
            # The parameters outside the layers that FSDP wraps.
            with self._dist.summon_full_params(self.model_wrapped, recurse=False):
                yield model
            model.train(was_training)

    def send_published_names(self, model: SeekletPreTrainedModel | None) -> None:
        """Let vLLM, where it samples, have the weights of a seeklet model by the names that it loads."""
        if getattr(self, "use_vllm", False) and model is not None:
            send_published_names(self.vllm_generation, model)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        theirs: Any = super()._get_train_sampler(dataset)  # pyright: ignore[reportArgumentType]
        names = ("mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        return EpochRepeatSampler(theirs.data_source, **{name: getattr(theirs, name) for name in names})
