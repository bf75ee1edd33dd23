"""Losses and hits of a pass, of one worker or of several."""

from __future__ import annotations

import math

import pytest
import torch

from raygf.errors import NonFiniteError
from raygf.records import ExitScore
from raygf.training.losses import Tally
from raygf.training.peers import Peers

BATCHES = [
    (torch.tensor([1.0, 2.0]), torch.tensor([3, 0]), 3),
    (torch.tensor([4.0, 8.0]), torch.tensor([1, 1]), 1),
]
MEAN = ExitScore((1.75, 3.5), (1.0, 0.25))


def tally(batches, *peers: Peers) -> Tally:
    made = Tally(*peers)
    for batch in batches:
        made.add(*batch)
    return made


def test_means_are_over_images():
    assert tally(BATCHES).score() == tally(BATCHES).finite_score("", "here") == MEAN
    assert len(tally(BATCHES)) == 2


def test_what_is_added_keeps_no_graph():
    weight = torch.ones(2, requires_grad=True)
    made = tally([(weight * losses, hits, size) for losses, hits, size in BATCHES])
    assert not made._losses[0].requires_grad
    assert made.score() == MEAN


def test_with_peers_it_is_the_sum_of_all():
    """Two workers that see the same, each with half the weight."""

    class Two(Peers):
        count = 2

        def sum_(self, tensor):
            return tensor.mul_(2)

    halves = [(losses / 2, hits, size) for losses, hits, size in BATCHES]
    found = tally(halves, Two()).score()
    assert found == ExitScore(MEAN.loss, (2.0, 0.5))


def test_a_loss_or_weight_that_is_not_finite_is_named():
    bad = [*BATCHES, (torch.tensor([0.0, math.nan]), torch.tensor([0, 0]), 2)]
    with pytest.raises(NonFiniteError, match=r"^here: the loss of exit 2 became nan at step 3; "):
        tally(bad).finite_score("", "here")
    with pytest.raises(NonFiniteError, match=r"^here: a weight became infinite .* step, 2: stem; "):
        tally(BATCHES).finite_score("stem", "here")
    assert math.isnan(tally(bad).score().loss[1])
