"""What a recipe needs before anyone queues for it: memory of a GPU and seconds of a step, by formula, without a GPU."""
