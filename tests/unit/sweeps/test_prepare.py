"""What is found out on the cluster before trials start; here without one, on a tiny network."""

from dataclasses import replace

import pytest
import torch
from ray import tune
from tiny_network import dataset

from raygf.config.run import ComputeConfig, DataConfig, ModelConfig, ResourceConfig, RunConfig
from raygf.errors import ConfigError, ResourceError
from raygf.methods.registry import METHODS
from raygf.sweeps import Space
from raygf.sweeps import prepare as preparing
from raygf.sweeps.command import Command
from raygf.sweeps.plan import SweepOptions
from raygf.sweeps.prepare import prepare, probe

RUN = RunConfig(
    rounds=4,
    batch_size=4,
    data=DataConfig(val=8, pad=0, flip=False),
    model=ModelConfig("tiny_network:three_exits"),
    compute=ComputeConfig("cpu", "fp32", "contiguous"),
    resources=ResourceConfig(gpus_per_exit=0.0, driver_gpus=0.0),
)
LR = {"fusion.lr": tune.loguniform(0.01, 1.0)}


@pytest.fixture
def nodes(monkeypatch):
    """The nodes of the cluster, to be changed; data and networks are tried in this process."""
    found = [{"CPU": 8.0, "GPU": 0.0}]
    monkeypatch.setattr(preparing, "idle_nodes", lambda: found)
    monkeypatch.setattr(preparing, "probe_remotely", probe)
    monkeypatch.setattr(preparing, "load_data", lambda data, seed: dataset())
    return found


def prepared(space, run=RUN, **options):
    return prepare(Command("tiny", SweepOptions(**options), run, frozenset()), space, run.resources)


def test_the_network_says_how_many_exits_and_passes_there_are(nodes):
    plan, _, notes = prepared(Space(LR))
    assert (plan.exits, plan.actors, plan.budget, notes) == (3, 3, 16, [])
    assert (plan.fields, plan.trials, plan.options.search) == (("fusion.lr",), 8, "random")
    with pytest.raises(ConfigError, match="metric = 'val_loss/exit_4': the network has 3 exits"):
        prepared(Space(LR, metric="val_loss/exit_4", mode="min"))


def test_methods_of_the_users_own_cost_what_they_take(nodes):
    methods = "pcgrad", "raygf.methods.torchjd:mgda"
    plan, _, _ = prepared(Space(variants=[{"method": name} for name in methods]))
    pcgrad, own = (plan.passes(replace(RUN, method=name)) for name in methods)
    assert own == pcgrad == (plan.costs[2] + 2 * sum(plan.costs)) / (3 * plan.costs[2])


def test_trials_have_as_many_exit_actors_as_the_cluster_holds_and_none_within_a_step(nodes):
    nodes[:] = [{"CPU": 4.0}]
    plan, _, notes = prepared(Space(LR), concurrent=2)
    assert plan.actors == 1
    assert notes == ["every trial has 1 exit actor for 3 exits: the cluster has no room for more"]
    nodes[:] = [{"CPU": 1.0}]
    plan, _, _ = prepared(Space(variants=[{"method": "sgd"}, {"method": "pcgrad"}]))
    assert plan.actors == 0
    with pytest.raises(ResourceError, match="1 exit actor"):
        prepared(Space(variants=[{"method": "sgd"}, {"method": "metagf"}]))


def test_variants_that_can_not_be_used_are_left_out_with_a_note(nodes, monkeypatch):
    def without_solvers(setting):
        raise ImportError

    for name in ("upgrad", "nashmtl"):
        monkeypatch.setitem(METHODS, name, without_solvers)
    variants = [{"method": name} for name in ("upgrad", "sgd", "delta-nashmtl")]
    _, make, notes = prepared(Space(LR, variants=variants), search="grid")
    trials = make.keywords["space"]["values"]["grid_search"]
    assert [trial["method"] for trial in trials] == ["sgd"] * 3
    note = "left out: method = {!r} needs solvers that are not installed"
    assert [line.partition(": pip")[0] for line in notes] == [note.format("upgrad"), note.format("nashmtl")]
    with pytest.raises(ConfigError, match=r"^space: method = 'upgrad' needs solvers"):
        prepared(Space(LR, variants=variants[:1]))


def test_a_value_that_the_network_refuses_is_an_error(nodes):
    exits = Space({"loss.coefficients": tune.choice(["ones", "sdn"]), **LR})
    assert prepared(exits)[0].exits == 3
    many = replace(RUN, model=ModelConfig("sweep_parts:EightExits"))
    with pytest.raises(ConfigError, match=r"^space: loss\.coefficients = 'sdn' supports at most 6 "):
        prepared(exits, run=many)


def test_probing_leaves_torch_as_it_was(nodes):
    before = torch.get_num_threads()
    costs, _, own, problems = probe(RUN, [[RUN], [RUN, replace(RUN, method="nope:nope")]])
    assert (len(costs), own, problems[0]) == (3, {}, "") and "nope" in problems[1]
    assert torch.get_num_threads() == before
