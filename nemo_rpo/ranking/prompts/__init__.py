"""Leaderboards that depend on the prompt, and whom to send a prompt to."""
