"""A network that stops early: what it does is what the evaluation simulates, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from tiny_network import CPU, SPEC, Tied, dataset, run_config, seeded, three_exits
from torch import Tensor, nn

from raygf.compute import Compute
from raygf.config.run import POLICIES, ModelConfig, MSDNetConfig
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.errors import ConfigError, UserError
from raygf.evaluation.budgeted import calibrate, exits_taken
from raygf.evaluation.loading import ImageTask, LoadedRun
from raygf.evaluation.outputs import collect_outputs
from raygf.models.build import build_model
from raygf.models.multi_exit import MultiExitNetwork
from raygf.serving.adaptive import AdaptiveClassifier, keep_rows
from raygf.training.network import BoundNetwork

DATA = dataset(val=40, test=60)
TASK = ImageTask(SPEC, DATA.statistics, DATA.class_names)
INF = math.inf


def spread(network, images):
    """``network`` with BatchNorm statistics of ``images``, so that its confidences spread."""
    network.train()
    for _ in range(60):
        network(images)
    for head in network.heads:
        linear = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
        linear.weight.data *= 4
    return network.eval()


def run_of(network):
    batches, config = DATA.open(CPU, 4, 60), run_config(eval_batch_size=60)
    return LoadedRun(config, DATA, BoundNetwork(network, CPU), batches, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run():
    images = next(DATA.open(CPU, 4, 60).evaluate("test"))[0]
    return run_of(spread(seeded(three_exits), images))


@pytest.fixture(scope="module")
def classifier(run):
    return AdaptiveClassifier.from_run(run)


@pytest.fixture(scope="module")
def outputs(run, classifier):
    return run.outputs("test", classifier.table.temperatures)


def quantiles(outputs, *shares):
    """Thresholds half-way between two confidences, at these quantiles."""
    rows = np.sort(outputs.confidence, axis=1)
    places = [int(share * rows.shape[1]) for share in shares]
    return (*((rows[k, p] + rows[k, p - 1]) / 2 for k, p in enumerate(places)), -INF)


def assert_simulated(classifier, outputs, images, thresholds):
    """What the classifier does is what the evaluation says that it does; returns the exits."""
    found = classifier.predict(images, thresholds=thresholds)
    exits = exits_taken(outputs.confidence, np.array(thresholds))
    rows = np.arange(len(exits))
    assert found.exit.tolist() == exits.tolist()
    assert found.label.tolist() == outputs.prediction[exits, rows].tolist()
    assert found.probability == pytest.approx(outputs.others["calibrated"][exits, rows], rel=1e-4)
    assert found.operations.tolist() == [classifier.operations[exit] for exit in exits]
    return exits


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.8), (0.9, 0.1), (0.02, 0.02)])
@pytest.mark.parametrize("batch_size", [7, 60])
def test_agrees_with_the_simulation(run, classifier, outputs, shares, batch_size):
    made = AdaptiveClassifier(
        run.bound.network, TASK, classifier.operations, classifier.table, CPU, batch_size=batch_size
    )
    exits = assert_simulated(made, outputs, DATA.test.images, quantiles(outputs, *shares))
    assert len(set(exits)) >= 2  # otherwise there is nothing to see
    run.bound.network.train()  # its mode is of no concern, and its state stays
    before = run.bound.state().sha256()
    all_deep = assert_simulated(made, outputs, DATA.test.images, (INF, INF, INF))
    assert set(all_deep) == {2} and run.bound.state().sha256() == before


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_leaves_where_the_simulation_says(run, policy):
    table = run.thresholds(policy)
    classifier, budget = AdaptiveClassifier.from_run(run, table), float(np.median(table.operations))
    test = run.outputs("test", table.temperatures)
    taken = exits_taken(test.score(policy), np.array(table.pick(budget)))
    found = classifier.predict(DATA.test.images, budget=budget)
    assert found.exit.tolist() == taken.tolist() and len(set(taken)) > 1
    places = taken, np.arange(len(taken))
    assert found.probability == pytest.approx(test.others["calibrated"][places], rel=1e-4)


def test_budget_is_kept_on_the_images_that_it_was_calibrated_on(run, classifier):
    operations = classifier.operations
    for budget in np.linspace(operations[0], operations[-1], 9):
        found = classifier.predict(DATA.val.images, budget=float(budget))
        assert found.operations.mean() <= budget + 1e-6
    row = len(classifier.table.operations) // 2
    budget = float(classifier.table.operations[row])
    taken = exits_taken(run.outputs("val").confidence, np.array(classifier.table.pick(budget)))
    assert classifier.predict(DATA.val.images, budget=budget).exit.tolist() == taken.tolist()
    assert len(set(taken)) > 1


def test_deeper_stages_see_fewer_images(run, classifier, outputs):
    seen: list[int] = []
    hooks = [
        stage.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        for stage in run.bound.network.stages
    ]
    thresholds = quantiles(outputs, 0.5, 0.5)
    classifier.predict(DATA.test.images, thresholds=thresholds)
    left_first = int((outputs.confidence[0] >= thresholds[0]).sum())
    assert seen[:2] == [60, 60 - left_first] and seen[2] < seen[1]
    seen.clear()
    classifier.predict(DATA.test.images, thresholds=(0.0, INF, INF))
    assert seen == [60]  # no image is left for the second stage
    for hook in hooks:
        hook.remove()


def test_tensors_arrays_and_odd_memory(classifier, outputs):
    thresholds = quantiles(outputs, 0.5, 0.5)
    frozen = DATA.test.images.copy()
    frozen.flags.writeable = False
    reversed_twice = DATA.test.images[::-1].copy()[::-1]
    for images in (torch.tensor(DATA.test.images), frozen, reversed_twice):
        assert_simulated(classifier, outputs, images, thresholds)
    none = classifier.predict(DATA.test.images[:0], thresholds=thresholds)
    assert none.label.shape == none.exit.shape == none.operations.shape == (0,)


class Nesting(nn.Module):
    """A stage whose state is features and a list; what the first one kept, the later ones read."""

    def forward(self, state):
        if isinstance(state, Tensor):
            return state.repeat(1, 4, 1, 1), [state, state.flatten(1)]
        features, (image, flat) = state
        return features * (1 + image) + flat.mean(dim=1)[:, None, None, None], [image, flat]


class FlatHead(nn.Linear):
    """Reads the features alone."""

    def forward(self, state):
        return super().forward(state[0].flatten(1))


def test_states_may_be_tuples_and_lists():
    run = run_of(
        seeded(lambda: MultiExitNetwork([Nesting() for _ in range(3)], [FlatHead(64, 3) for _ in range(3)]))
    )
    classifier = AdaptiveClassifier.from_run(run)
    outputs = run.outputs("test", classifier.table.temperatures)
    thresholds = quantiles(outputs, 0.5, 0.5)
    exits = assert_simulated(classifier, outputs, DATA.test.images, thresholds)
    assert set(exits) == {0, 1, 2}


@pytest.mark.parametrize(
    "compute", [CPU, Compute("cpu", "fp32", "channels_last"), Compute("cpu", "bf16", "channels_last")]
)
def test_msdnet(compute):
    """Features of several scales, in the layouts and formats that runs use.

    A smaller batch may be summed in another order, so images within rounding of a threshold are not compared.
    """
    spec = InputSpec(3, 16, 16, 10)
    config = MSDNetConfig(exits=3, base=1, step=1, channels=8, growth=8, factors=(1, 2), head_channels=16)
    network = build_model(ModelConfig("msdnet", msdnet=config), spec, seed=0)
    draws = np.random.default_rng(0)
    images = (draws.integers(0, 256, (64, 3, 1, 1)) * draws.random((64, 3, 16, 16))).astype(np.uint8)
    bound = BoundNetwork(network, compute)
    task = ImageTask(spec, ChannelStatistics((0.5,) * 3, (0.25,) * 3), tuple("abcdefghij"))
    classifier = AdaptiveClassifier(bound.network, task, (1, 2, 3), None, compute)
    pixels = classifier._normalise(torch.tensor(images))
    spread(bound.network, pixels)
    outputs = collect_outputs(bound, [(pixels, torch.zeros(64, dtype=torch.int64))])
    thresholds = quantiles(outputs, 0.6, 0.5)
    margin = np.abs(outputs.confidence[:2] - np.array(thresholds[:2])[:, None]).min(axis=0)
    clear = margin > (1e-5 if compute.precision == "fp32" else 2e-2)
    found = classifier.predict(images, thresholds=thresholds)
    exits = exits_taken(outputs.confidence, np.array(thresholds))
    assert clear.mean() > 0.5 and set(exits) == {0, 1, 2}
    assert found.exit[clear].tolist() == exits[clear].tolist()
    same = outputs.prediction[exits, np.arange(64)] == found.label
    assert same[clear].mean() > 0.98


FITTING, BUDGET = DATA.test.images, {"budget": INF}


@pytest.mark.parametrize(
    "images, call, says",
    [
        (FITTING, {}, "either budget or thresholds"),
        (FITTING, {"budget": 1e9, "thresholds": (0, 0, 0)}, "either budget or thresholds"),
        (FITTING, {"thresholds": (0.5, 0.5)}, r"thresholds = \[0\.5, 0\.5\]: must be 3 numbers"),
        (FITTING, {"thresholds": (0.5, math.nan, 0)}, "must be 3 numbers"),
        (FITTING, {"budget": 1}, r"budget = 1: must be at least .* those of the first exit"),
        (FITTING, {"budget": math.nan}, "budget = nan: must be a finite number"),
        (np.zeros((2, 1, 4, 4), np.float32), BUDGET, r"must be uint8 \(N, 1, 4, 4\), .* not float32"),
        (torch.zeros(2, 1, 4, 4), BUDGET, "not float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), BUDGET, r"not uint8 \(2, 3, 4, 4\)"),
        (np.zeros((1, 4, 4), np.uint8), BUDGET, r"not uint8 \(1, 4, 4\)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_can_not_be_done_is_refused_in_one_line(classifier, images, call, says):
    with pytest.raises(UserError, match=says) as caught:
        classifier.predict(images, **call)
    assert "\n" not in str(caught.value)


def test_stages_costs_and_thresholds_must_be_there(run):
    with pytest.raises(ConfigError, match="no table of thresholds"):
        AdaptiveClassifier(run.bound.network, TASK, (1, 2, 3), None, CPU).predict(FITTING, budget=2)
    with pytest.raises(ConfigError, match="2 costs for a network of 3 exits"):
        AdaptiveClassifier(run.bound.network, TASK, (1, 2), None, CPU)
    with pytest.raises(ConfigError, match="Tied can't stop early: it has no stages and heads"):
        AdaptiveClassifier.from_run(run_of(seeded(Tied)))


def test_from_run_calibrates_on_the_validation_images(run, classifier):
    expected = calibrate(run.outputs("val"), classifier.operations)
    assert np.array_equal(classifier.table.thresholds, expected.thresholds)
    assert classifier.operations == tuple(cost.operations for cost in run.costs())
    given = calibrate(run.outputs("test"), classifier.operations)
    assert AdaptiveClassifier.from_run(run, given).table is given


def rows_after(state, *stays):
    return keep_rows(state, torch.tensor(stays, dtype=torch.bool), torch.arange(10, 10 + len(stays)))


def test_rows_are_kept_together_with_their_numbers_and_keep_their_layout():
    one, two = torch.arange(10).view(5, 2), torch.arange(5)
    (first, [second, (third,)]), numbers = rows_after((one, [two, (two.clone(),)]), 0, 1, 0, 0, 1)
    assert numbers.tolist() == [11, 14]
    assert first.tolist() == [[2, 3], [8, 9]]
    assert second.tolist() == third.tolist() == [1, 4]

    features = torch.randn(5, 8, 6, 6).to(memory_format=torch.channels_last)
    kept, _ = rows_after(features, 1, 0, 1, 0, 1)
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kept, features[[0, 2, 4]])


@pytest.mark.parametrize(
    "state, what",
    [
        (torch.zeros(2, 4), r"a tensor \(2, 4\) for 3 images"),
        (torch.tensor(1.0), r"a tensor \(\) for 3 images"),
        ((torch.zeros(3), 7), "a int for 3 images"),
        ({"a": torch.zeros(3), "b": None}, "a NoneType for 3 images"),
    ],
)
def test_states_without_a_row_per_image(state, what):
    with pytest.raises(ConfigError, match=what):
        rows_after(state, 1, 0, 1)
