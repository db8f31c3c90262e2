"""Low-rank adapters (LoRA): their settings, which layers they stand beside, how many weights they have."""
