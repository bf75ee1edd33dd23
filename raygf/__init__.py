"""raygf: train multi-exit networks in parallel on Ray and merge their exits' gradients (Meta-GF)."""

__version__ = "0.1.0"
