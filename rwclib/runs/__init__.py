"""One run, from its settings to its archived tables."""
