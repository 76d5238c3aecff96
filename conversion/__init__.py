"""Converters of original checkpoints: one script a family, what they share in `common.py`."""
