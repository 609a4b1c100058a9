"""The model: configuration, layers, checkpoints and kernels of the DeepSeek-V3 architecture."""
