"""Merging expected gradients: flat parameter space, segments, weights, fitting, BatchNorm statistics."""
