"""Low-rank adapters (LoRA) beside Megatron's linear layers: the base is frozen, and is its own reference."""
