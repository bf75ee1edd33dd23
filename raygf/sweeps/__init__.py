"""Sweeps: many runs of one recipe side by side under Ray Tune, to choose settings by validation accuracy."""

from raygf.sweeps.space import Space, require_learned_fusion, settings_of_methods

__all__ = ["Space", "require_learned_fusion", "settings_of_methods"]
