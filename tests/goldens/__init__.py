"""Outputs of the original code, as data."""
