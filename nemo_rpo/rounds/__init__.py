"""Rounds of sample, judge, believe, train and measure; each stage is whole in its file, or is done again."""
