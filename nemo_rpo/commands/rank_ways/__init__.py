"""Ways of ranking that ``nemo-rpo rank`` has beside its leaderboard of comparisons."""
