"""Runs on Ray: driver and exits as actors, drivers under Ray Train, and what to do when they are lost.

With ``raygf.sweeps`` the only part that imports Ray.
"""
