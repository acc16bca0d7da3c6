"""Labelled rows, models and the arguments that name them."""
