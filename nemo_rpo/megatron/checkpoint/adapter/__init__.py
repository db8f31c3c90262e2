"""Adapters in and out: this package's adapter-only checkpoints, and folders of Hugging Face's peft."""
