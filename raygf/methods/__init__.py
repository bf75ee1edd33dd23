"""How the exits' gradients become one update within a step."""
