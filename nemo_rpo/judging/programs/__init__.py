"""Ready functions for judges of kind ``program``: scores of one response."""
