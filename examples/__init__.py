"""Scripts that a user runs."""
