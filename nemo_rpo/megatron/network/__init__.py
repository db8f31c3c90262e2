"""The GPTModel: its spec, attention, precision, heads."""
