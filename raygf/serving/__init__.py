"""A trained network that stops early: in Python, in files, and behind MLflow."""
