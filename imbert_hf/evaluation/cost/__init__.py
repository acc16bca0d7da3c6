"""Time, memory and work: `imbert-eval cost` and `targets`."""
