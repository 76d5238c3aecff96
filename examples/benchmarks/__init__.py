"""Scripts that measure speed and cost."""
