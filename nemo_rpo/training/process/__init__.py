"""This process among the others of its run: its device, the lock on the folder, work of rank 0, stopping early."""
