"""Attacks on embeddings and words, and natural noise: `imbert-eval attack`."""
