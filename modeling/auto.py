"""Registration with transformers' Auto classes, so that a `deepseek_v3` checkpoint loads as ours, and its undoing."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .classifiers import SeekletForSequenceClassification, SeekletForTokenClassification
from .configuration import READ_MODEL_TYPES, SeekletConfig
from .heads import SeekletForCausalLM
from .model import SeekletModel

AUTO_CLASSES = {
    AutoModel: SeekletModel,
    AutoModelForCausalLM: SeekletForCausalLM,
    AutoModelForSequenceClassification: SeekletForSequenceClassification,
    AutoModelForTokenClassification: SeekletForTokenClassification,
}


def register() -> None:
    """Make the Auto classes load `deepseek_v3` (and `kimi_k2`) checkpoints as seeklet models; idempotent."""
    for model_type in (*READ_MODEL_TYPES, SeekletConfig.model_type):
        # AutoConfig.register refuses a config whose model_type is another name; the mapping itself does not.
        CONFIG_MAPPING.register(model_type, SeekletConfig, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        auto_class.register(SeekletConfig, model_class, exist_ok=True)
    # Without it transformers' own loading paths would leave per-expert tensors unfused, experts at random.
    experts = get_checkpoint_conversion_mapping("deepseek_v3")
    assert experts is not None
    register_checkpoint_conversion_mapping(SeekletConfig.model_type, experts, overwrite=True)


def unregister() -> None:
    """Undo `register`: the Auto classes load `deepseek_v3` checkpoints as transformers' own classes again.

    Models that are loaded keep working, and building, saving and loading by our classes' own names does too: what a
    SeekletConfig stands for stays known, since the classifiers build their decoder by it.
    """
    for model_type in READ_MODEL_TYPES:
        CONFIG_MAPPING._extra_content.pop(model_type, None)


def is_registered() -> bool:
    """Return whether `AutoConfig` resolves `deepseek_v3` to SeekletConfig."""
    return AutoConfig.for_model("deepseek_v3").__class__ is SeekletConfig
