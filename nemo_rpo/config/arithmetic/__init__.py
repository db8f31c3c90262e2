"""What follows from settings alone, before a run starts: products of a step, steps of a learning rate."""
