"""What ``nemo-rpo rank`` can tell beside the leaderboard, each with its options, its text and its picture."""
