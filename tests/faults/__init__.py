"""Broken videos, checkpoints and killed processes, made from a seed: `make faults` runs all, `make test` some."""
