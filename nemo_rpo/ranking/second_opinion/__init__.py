"""Leaderboards that do not believe every entry of the table of wins, or that say where the table contradicts them."""
