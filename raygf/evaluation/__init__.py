"""How good a trained network is at every exit, and how to show it."""
