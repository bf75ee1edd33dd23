"""Multi-exit networks, exits attached to any network, and what every exit costs."""
