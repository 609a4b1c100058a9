"""The block-scaled fp8 format of the published checkpoints."""
