"""Scripts that show that the methods work: models trained on videos of motion."""
