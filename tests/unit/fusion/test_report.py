"""What a round reports of its fusion, against vectors written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, dataset, run_config
from torch.testing import assert_close

from raygf.config.run import FusionConfig
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import ExitTrainer, LocalExecutor
from raygf.training.space import find_ownership

DATA, STATE = dataset(), bind().state()


def make(**fusion) -> DeltaRound:
    config, bound = run_config(fusion=FusionConfig(**fusion)), bind()
    owned = find_ownership(bound.network, torch.zeros(2, 1, 4, 4), bound.space)
    batches = DATA.open(CPU, config.batch_size, 5)
    return DeltaRound(config, bound, batches, LocalExecutor(config, DATA), owned)


def cosine_of(one, two) -> float:
    return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


@pytest.mark.parametrize("kind", ["tensor", "channel", "network"])
def test_reported_conflict_is_the_naive_one(kind):
    """The fused update is what the merge really added."""
    outcome = make(segments=kind, epsilon=0.5).run(STATE, 1)
    space, trainer = bind().space, ExitTrainer(run_config(), DATA)
    deltas = [trainer.train(STATE, exit, 3, 1).delta.astype(np.float64) for exit in range(3)]
    update = outcome.state.vector.astype(np.float64) - STATE.vector
    owned = find_ownership(bind().network, torch.zeros(1, 1, 4, 4), space).numpy()
    before, after, means = [], [], []
    for t, slot in enumerate(space.slots):
        part = slice(slot.start, slot.stop)
        owners = np.flatnonzero(owned[:, t])
        pairs = [cosine_of(deltas[i][part], deltas[j][part]) for i in owners for j in owners if i < j]
        means.append(np.mean(pairs) if pairs else np.nan)
        before += pairs
        after += [cosine_of(deltas[i][part], update[part]) for i in owners] if len(owners) > 1 else []
    report = outcome.fusion
    assert report.conflict_before == pytest.approx(np.mean(np.array(before) < 0))
    assert report.conflict_after == pytest.approx(np.mean(np.array(after) < 0))
    assert report.tensor_cosine == pytest.approx(np.array(means), abs=1e-4, nan_ok=True)
    assert 0 < report.conflict_before < 1  # the tiny network does show conflict


def test_reported_accuracy_is_that_of_the_fusion_pass():
    """Without a learning rate the weights stay equal, so the pass can be repeated by hand."""
    round = make(lr=0.0)
    outcome = round.run(STATE, 1)
    bound = bind()
    bound.vector.copy_(torch.from_numpy(outcome.state.vector))
    bound.network.train()
    hits = count = 0
    for images, labels in DATA.open(CPU, 4, 5).train(0, "fuse", 1):
        logits = torch.stack(bound.network(images))
        hits = hits + (logits.argmax(dim=2) == labels).sum(dim=1)
        count += len(labels)
    assert outcome.fusion.accuracy == pytest.approx((hits / count).tolist())


def test_the_fitted_weights_are_kept_beside_the_moving_average():
    round = make(ema=0.9)
    assert "eta_fitted" not in round.arrays()  # nothing has been fitted yet
    round.run(STATE, 1)
    arrays = round.arrays()
    assert_close(arrays["eta"], 0.9 + 0.1 * arrays["eta_fitted"])
    assert not np.array_equal(arrays["eta"], arrays["eta_fitted"])


def test_a_checkpoint_without_fitted_weights_is_taken():
    round = make()
    round.run(STATE, 1)
    arrays = {name: array for name, array in round.arrays().items() if name != "eta_fitted"}
    second = make()
    second.restore(arrays)
    assert "eta_fitted" not in second.arrays()
