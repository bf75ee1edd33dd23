import pytest
from tiny_network import dataset


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    """Drivers load the tiny data set."""
    monkeypatch.setattr("raygf.rounds.driver.load_data", lambda config, seed: dataset(val=config.val))
