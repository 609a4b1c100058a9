"""DeepSeek-V3-architecture models for transformers; importing it registers them with the Auto classes."""

from .auto import register, unregister
from .classifiers import SeekletForSequenceClassification, SeekletForTokenClassification
from .configuration import SeekletConfig
from .errors import CheckpointError, ConfigError, GenerationError, SeekletError
from .heads import SeekletForCausalLM
from .kernelize import kernelize, unkernelize
from .kernels.launch import take_triton
from .model import SeekletModel, SeekletPreTrainedModel
from .mtp_decoding import SeekletMTPOutput
from .outputs import SeekletCausalLMOutput

register()
# Losses, fp8 and adapters call operators without a hook, which take no kernel before `kernelize` asks for them.
take_triton(False)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "GenerationError",
    "SeekletCausalLMOutput",
    "SeekletConfig",
    "SeekletError",
    "SeekletForCausalLM",
    "SeekletForSequenceClassification",
    "SeekletForTokenClassification",
    "SeekletMTPOutput",
    "SeekletModel",
    "SeekletPreTrainedModel",
    "kernelize",
    "register",
    "unkernelize",
    "unregister",
]
