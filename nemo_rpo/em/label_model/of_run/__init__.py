"""The label model of a run: what it is fitted to, what its ranks share, and what gold labels say of it in the end."""
