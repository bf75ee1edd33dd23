"""What a run is: its settings, their bounds, and complete runs by name."""
