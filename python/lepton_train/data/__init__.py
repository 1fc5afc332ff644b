"""Real data for demonstrations and tests, read from installed packages; nothing is downloaded."""
