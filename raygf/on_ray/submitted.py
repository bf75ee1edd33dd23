"""What a submitted job would lose: Ray runs it in a copy of its files, and deletes that afterwards."""

from __future__ import annotations

from pathlib import Path

from raygf.config import RunConfig

_COPIES = "/runtime_resources/working_dir_files/"


def fleeting(config: RunConfig) -> str:
    """A note on what of a run is to lie in such a copy; "" if nothing is."""
    from raygf.tracking.uris import resolve_uri

    places = {"checkpoints (--storage.path)": config.storage.path}
    if config.tracking.enabled:
        places["MLflow's records (--tracking.uri)"] = resolve_uri(config.tracking, Path.cwd())
    lost = [what for what, place in places.items() if _COPIES in f"{place}/"]
    if not lost:
        return ""
    return f"{' and '.join(lost)} lie in Ray's copy of the working directory, which it deletes after the job"
