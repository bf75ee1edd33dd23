from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny_network import dataset


@pytest.fixture(autouse=True, scope="package")
def tiny_data() -> Iterator[None]:
    """Drivers load the tiny data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raygf.rounds.driver.load_data", lambda config, seed: dataset(val=config.val))
        yield
