"""One command line for the sweep and the runs in it; what is refused, and found out before trials start."""

from dataclasses import replace

import pytest
import torch
from ray import tune
from sweep_parts import plan
from tiny_network import dataset

from raygf.config.recipes import get_recipe
from raygf.config.run import ComputeConfig, DataConfig, ModelConfig, ResourceConfig, RunConfig
from raygf.errors import ConfigError, ResourceError
from raygf.methods.registry import METHODS
from raygf.sweeps import Space
from raygf.sweeps import command as preparing
from raygf.sweeps.command import Command, check_flags, check_space, parse_sweep, prepare, probe, search_name
from raygf.sweeps.plan import SweepOptions

GOOD = {"fusion.lr": tune.loguniform(0.01, 1.0)}


def test_flags_are_of_the_sweep_and_of_the_runs_in_it():
    assert parse_sweep("", []) == Command("digits", SweepOptions(), get_recipe("digits"), frozenset())
    argv = "--space method --trials 5 --recipe=digits-sgd --rounds 4 --data.train-limit 48 --max-failures 0"
    command = parse_sweep("", argv.split())
    assert command.recipe == "digits-sgd"
    assert (command.options.space, command.options.trials, command.options.max_failures) == ("method", 5, 0)
    assert (command.run.rounds, command.run.data.train_limit, command.run.method) == (4, 48, "sgd")
    assert command.run.resources.max_failures == 3
    assert command.given == {"space", "trials", "rounds", "data.train_limit", "max_failures"}


@pytest.mark.parametrize(
    ("words", "resume"),
    [(["--resume"], True), (["--resume", "True"], True), (["--resume", "False"], False), ([], False)],
)
def test_resume_may_stand_alone(words, resume):
    for argv in ([*words, "--storage.name", "a"], ["--storage.name", "a", *words]):
        command = parse_sweep("", argv)
        assert (command.options.resume, command.run.storage.name) == (resume, "a")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--recipe nope", "recipe = 'nope': must be one of those"),
        ("--trials 0", "trials = 0: must be a whole number of at least 1"),
        ("--points 1", "points = 1: must be a whole number of at least 2"),
        ("--scheduler best", "--scheduler"),
        ("--max-failures -1", "max_failures = -1"),
        ("--nonsense 1", "--nonsense"),
        ("--rounds 0", "rounds = 0"),
        ("--resources.executor local", "resources.executor = 'local': sweeps need Ray"),
        ("--resources.workers 2", "resources.workers = 2: "),
        ("--stop-after 3", "stop_after = 3: "),
        ("--storage.resume True --storage.name x", "resume a sweep with --resume"),
        ("--data.val 0", "data.val = 0: trials are compared by validation images"),
        ("--search grid --trials 4", "trials = 4: a grid has as many trials as points"),
        ("--grace 5", "grace = 5: scheduler = 'none' has none"),
    ],
)
def test_flags_that_are_wrong_or_do_not_go_with_a_sweep_are_one_line(argv, says):
    check_flags(parse_sweep("", []))
    with pytest.raises(ConfigError) as caught:
        check_flags(parse_sweep("", argv.split()))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_help_lists_spaces_recipes_and_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_sweep("Sweeps.", ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "fusion_lr Meta-GF's fusion: learning rate" in text
    for word in ("digits-sgd:", "--resume", "--scheduler {asha,none}", "--data.train-limit"):
        assert word in text


def test_a_resumed_sweep_needs_no_flags_and_may_lie_elsewhere():
    stored = plan(options=SweepOptions(space="fusion", trials=3))
    command = parse_sweep("", ["--resume", "--storage.name", "sweep"], stored)
    assert command.run == replace(stored.run, storage=replace(stored.run.storage, name="sweep"))
    assert command.options == replace(stored.options, resume=True)
    same = ["--resume", "--recipe", "digits", "--space", "fusion", "--trials", "3", "--rounds", "40"]
    assert parse_sweep("", same, stored).options == command.options
    elsewhere = "--resume --storage.path /elsewhere --tracking.uri http://x --resources.address y:1"
    run = parse_sweep("", elsewhere.split(), stored).run
    assert (run.storage.path, run.tracking.uri, run.resources.address) == ("/elsewhere", "http://x", "y:1")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--recipe digits-sgd", "recipe was 'digits', is now 'digits-sgd'"),
        ("--space method", "space was 'fusion_lr', is now 'method'"),
        ("--fusion.lr 0.2", r"fusion\.lr was 0\.1, is now 0\.2"),
    ],
)
def test_a_resumed_sweep_stays_the_same_sweep(argv, says):
    with pytest.raises(ConfigError, match=f"can't resume another sweep: .*{says}"):
        parse_sweep("", ["--resume", *argv.split()], plan())


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (Space({"fusion.ema": tune.uniform(0, 0.9)}), "fusion.ema is swept by 'fusion_lr' and also fixed by"),
        (Space({"fusion.lrr": tune.uniform(0, 1)}), "fusion.lrr: a run has no such field"),
        (Space({"loss.aux": tune.uniform(-1.0, 1.5)}), "loss.aux = -1.0: must be"),
        (Space({"method": tune.choice(["sgd", "sgdd"])}), "method = 'sgdd': must be one of metagf"),
        (Space({"rounds": tune.randint(1, 9)}), "rounds can't be swept: every trial gets as many training"),
        (Space({"model.msdnet.exits": tune.randint(2, 5)}), "model.msdnet.exits can't be swept"),
        (Space({"resources.actors": tune.choice([1, 2])}), "resources.actors can't be swept"),
        (Space(GOOD, metric="test_accuracy/average"), "metric = 'test_accuracy/average'"),
        (Space(), "it is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spaces_that_contradict_a_run(space, says):
    command = parse_sweep("", ["--fusion.ema=0.9"])
    check_space(Space(GOOD), command)
    with pytest.raises(ConfigError) as caught:
        check_space(space, command)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "space", "name"),
    [
        ({}, Space(), "random"),
        ({}, Space(search="grid"), "grid"),
        ({"trials": 3}, Space(search="grid"), "random"),
        ({"search": "grid"}, Space(), "grid"),
    ],
)
def test_the_search_of_the_flag_counts_before_that_of_the_space(options, space, name):
    assert search_name(SweepOptions(**options), space) == name


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
    assert (len(plan.costs), plan.actors, plan.budget, notes) == (3, 3, 16, [])
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
    assert [trial["method"] for trial in make.keywords["trials"]] == ["sgd"] * 3
    note = "left out: method = {!r} needs solvers that are not installed"
    assert [line.partition(": pip")[0] for line in notes] == [note.format("upgrad"), note.format("nashmtl")]
    with pytest.raises(ConfigError, match=r"^space: method = 'upgrad' needs solvers"):
        prepared(Space(LR, variants=variants[:1]))


def test_a_value_that_the_network_refuses_is_an_error(nodes):
    exits = Space({"loss.coefficients": tune.choice(["ones", "sdn"]), **LR})
    assert len(prepared(exits)[0].costs) == 3
    many = replace(RUN, model=ModelConfig("sweep_parts:EightExits"))
    with pytest.raises(ConfigError, match=r"^space: loss\.coefficients = 'sdn' supports at most 6 "):
        prepared(exits, run=many)


def test_probing_leaves_torch_as_it_was(nodes):
    before = torch.get_num_threads()
    costs, _, own, problems = probe(RUN, [[RUN], [RUN, replace(RUN, method="nope:nope")]])
    assert (len(costs), own, problems[0]) == (3, {}, "") and "nope" in problems[1]
    assert torch.get_num_threads() == before
