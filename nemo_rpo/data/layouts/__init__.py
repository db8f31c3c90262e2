"""The layouts that preference data comes in, one file a family."""
