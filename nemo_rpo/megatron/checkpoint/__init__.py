"""Weights and optimizer in and out: Megatron's distributed checkpoints, Hugging Face folders, ``.nemo`` files."""
