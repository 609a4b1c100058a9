"""The classifiers of sequences and of tokens."""

import copy

from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from .configuration import SeekletConfig
from .model import SeekletPreTrainedModel


class _WithoutMTP:
    """A classifier has no next token to predict: its decoder is built without MTP modules."""

    _uses_mtp = False

    def __init__(self, config: SeekletConfig):
        config = copy.deepcopy(config)
        config.num_nextn_predict_layers = 0
        super().__init__(config)  # pyright: ignore[reportCallIssue]


class SeekletForSequenceClassification(_WithoutMTP, GenericForSequenceClassification, SeekletPreTrainedModel):
    """Classifier of whole sequences, from the hidden state of the last token that is not padding."""


class SeekletForTokenClassification(_WithoutMTP, GenericForTokenClassification, SeekletPreTrainedModel):
    """Classifier of every token."""
