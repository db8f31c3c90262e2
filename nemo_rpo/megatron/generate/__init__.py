"""Text from a model spread over tensor and pipeline ranks: with a key-value cache, or a prefix at a time."""
