"""What a run says while it trains: terminal, files, progress."""
