"""A page on a crowd, from votes alone."""
