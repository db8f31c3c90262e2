"""Log-probs and divergences of given tokens, from logits or straight from hidden states."""
