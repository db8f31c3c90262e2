"""From tokenised pairs to the micro-batches of a step."""
