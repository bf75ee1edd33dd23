"""A short run of Meta-GF, trained once."""

import pytest
from past_runs import train
from tiny_network import run_config

from raygf.config.run import DataConfig, FusionConfig


@pytest.fixture(scope="session")
def fused_checkpoint(tmp_path_factory):
    """The last checkpoint of two rounds on digits, with fusion weights by channel."""
    path = str(tmp_path_factory.mktemp("runs"))
    data = DataConfig("digits", val=30, train_limit=40, pad=0, flip=False)
    return train(
        run_config(path=path, rounds=2, data=data, fusion=FusionConfig(segments="channel"))
    ).checkpoint
