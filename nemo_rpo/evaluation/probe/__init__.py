"""What a frozen model knows of preferences: a linear Bradley-Terry probe on its hidden states."""
