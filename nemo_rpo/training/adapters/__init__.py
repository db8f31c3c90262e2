"""The adapters of a run under LoRA: what they start from, and what is said of them."""
