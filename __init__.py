"""DeepSeek-V3-architecture models for transformers: generate, train and save in the published format."""

__version__ = "0.1.0"
