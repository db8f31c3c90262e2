"""What a micro-batch holds and asks: responses, segments, context slices, and what the head is to answer."""
