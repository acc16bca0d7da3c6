"""Does a classifier hold up? `imbert-eval check`."""
