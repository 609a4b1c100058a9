"""LoRA that reaches every part of a DeepSeek-V3 model, its routed experts included."""
