"""The tests, and the small models, videos and golden cases that they share."""
