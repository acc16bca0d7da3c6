"""A study: fine-tunings by a plan, what is measured of each, and the tables of all. README.md says how to run it."""
