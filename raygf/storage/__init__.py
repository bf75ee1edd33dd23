"""A run on disk: its folder and the lock on it, its checkpoints, and the history that they hold."""
