"""The model card: what is spent by default, and what accuracy a budget buys."""

import re

import numpy as np
import pytest
from tiny_network import bind, dataset, run_config

from raygf.evaluation.loading import LoadedRun
from raygf.serving.adaptive import AdaptiveClassifier
from raygf.serving.card import default_line, model_card
from raygf.storage.checkpoint import Checkpoint


def test_every_budget_has_the_accuracy_that_the_classifier_reaches():
    bound, data = bind(), dataset(val=30, test=40)
    checkpoint = Checkpoint(4, bound.state(), {}, {})
    run = LoadedRun(run_config(), data, bound, data.open(bound.compute, 4, 5), checkpoint)
    classifier = AdaptiveClassifier.from_run(run)
    card, whole = model_card(run, classifier), classifier.operations[-1]
    assert "uint8 (N, 1, 4, 4). 3 classes: a, b, c." in card and default_line(classifier) in card
    rows = [re.split(r" *\| *", line)[1:-1] for line in card.splitlines() if "% |" in line]
    assert len(rows) > 3 and rows[-1][1] == "100%"
    budgets = {f"{budget / whole:.0%}": budget for budget in classifier.table.operations}
    for _, share, val, test, spent in rows:
        budget = budgets[share.removesuffix(" (default)")]
        answers = classifier.predict(data.test.images, budget=budget)
        assert test == f"{np.mean(answers.label == data.test.labels):.2%}"
        assert val == f"{classifier.table.expected_accuracy(budget):.2%}"
        assert float(spent) * 1e3 == pytest.approx(answers.operations.mean(), abs=1)
        assert ("default" in share) == (budget == classifier.default_budget)
    classifier.table = None
    assert f"{whole} operations on average, those of the whole network" in model_card(run, classifier)
