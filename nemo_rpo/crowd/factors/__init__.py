"""What labels reward: a linear Bradley-Terry model of answers' properties, or of a model's hidden states."""
