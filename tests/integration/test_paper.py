"""The experiments behind docs/results.md: which there are, what a run leaves, and that it can be repeated."""

import numpy as np
import pytest
from experiments import METHODS, TRIED, Experiment, Plan, at
from noisy_labels import SHARE, mislabelled
from paper import RUNS, Options, append, hours_left, left, read_rows, train

COUNTED = {"digits": 192, "vgg": 1500}


@pytest.mark.parametrize("network", COUNTED)
@pytest.mark.parametrize("method", METHODS)
def test_a_comparison_has_as_many_rounds_as_cost_the_same(network, method):
    """To within half a round of the method's own, which is what rounding leaves."""
    paper = at(Experiment(network, COUNTED[network], "metagf", 0, 0.1, 1), "epochs")
    one = Experiment(network, COUNTED[network], method, 0, 0.1, 1)
    compute, steps = at(one, "compute"), at(one, "steps")
    assert abs(compute.passes() - paper.passes()) <= one.passes() / 2 + 1e-9
    assert abs(steps.steps() - paper.steps()) <= one.steps() / 2
    assert at(one, "epochs").rounds == paper.rounds
    assert [at(one, each).rounds / paper.rounds for each in ("long", "longer", "longest")] == [7, 14, 28]


def test_runs_follow_the_trials_and_take_the_best_rate():
    plan = Plan(1500, ("vgg",), ("ge",), ("epochs", "compute"), (0, 1))
    trials = list(plan.experiments([]))
    assert [trial.lr for trial in trials] == list(TRIED)  # no more before these are done
    rows = [{"name": each.name, "val_mean": str(place % 2)} for place, each in enumerate(trials)]
    known = list(plan.experiments(rows))
    assert known[:3] == trials and {(one.seed, one.lr) for one in known[3:]} == {(0, TRIED[1]), (1, TRIED[1])}
    assert all(Experiment.named(one.name) == one for one in known)


def test_rates_of_few_and_of_many_images_are_those_of_1500():
    tried = [
        Plan(images, ("vgg",), ("ge",), ("epochs",), (0,)).trials("vgg", "ge") for images in (300, 1500, 5000)
    ]
    assert tried[0] == tried[1] == tried[2] and {trial.images for trial in tried[0]} == {1500}


def test_scales_name_networks_and_images():
    small, paper = Options().plan(), Options(scale="paper").plan()
    assert (small.networks, small.images) == (("vgg", "msdnet"), 1500)
    assert len(paper.networks) == 6 and paper.images == 45_000
    assert Options(scale="paper", networks=("digits",), images=192).plan().networks == ("digits",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(networks=("vgg17",)), "'vgg17' is none of vgg"),
        (Options(methods=("sgd", "adagrad")), "'adagrad' is none of sgd"),
        (Options(comparisons=("hours",)), "'hours' is none of epochs"),
        (Options(images=2000), "msdnet is trained on 300, 1500, 5000"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(options, said):
    with pytest.raises(ValueError, match=said):
        options.plan()


def test_a_run_leaves_lines_and_is_repeated_to_the_same_weights(tmp_path):
    experiment = Experiment("digits", 192, "prefix", 0, 0.1, 2)
    first, again = (train(experiment, Options(storage=str(tmp_path / name))) for name in ("a", "b"))
    resumed = train(experiment, Options(storage=str(tmp_path / "a")))  # it has ended: only measured
    (line,) = first[RUNS]
    timed = {"seconds"}
    for other in (again, resumed):
        assert {k: v for k, v in other[RUNS][0].items() if k not in timed} == {
            k: v for k, v in line.items() if k not in timed
        }
    assert line["name"] == experiment.name and len(line["ece"].split()) == len(line["test"].split()) == 3
    assert float(line["training_passes"]) == pytest.approx(experiment.passes(), abs=1e-3)
    append(tmp_path / RUNS, first[RUNS])
    rows = read_rows(tmp_path / RUNS)
    plan = Plan(192, ("digits",), ("sgd",), ("epochs",), (0,))
    (todo,) = left(plan, rows)
    seconds = float(line["seconds"]) / float(line["training_passes"]) * todo.passes()
    assert hours_left([todo], rows, 2) == pytest.approx(seconds / 7200)


def test_wrong_labels_are_as_many_as_asked_for_and_never_right():
    labels = np.arange(1000) % 10
    wrong = mislabelled(labels, 10) != labels
    assert wrong.sum() == SHARE * 1000
    assert np.bincount(mislabelled(labels, 10)[wrong], minlength=10).min() > 20
    assert (mislabelled(labels, 10) == mislabelled(labels, 10)).all()
