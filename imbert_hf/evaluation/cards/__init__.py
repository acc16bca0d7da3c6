"""Model cards made of results: `imbert-eval card`."""
