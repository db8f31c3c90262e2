"""Which tokenizer, and how a prompt and a response become tokens."""
