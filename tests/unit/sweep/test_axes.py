"""Ray Tune's domains read as axes: what is drawn lies within, what can't be checked is refused."""

from __future__ import annotations

import numpy as np
import pytest
from ray import tune

from raygf.errors import ConfigError
from raygf.sweep.space import Choice, Range, read_axis

DOMAINS = [
    tune.uniform(-2.0, 3.0),
    tune.loguniform(1e-4, 10.0),
    tune.quniform(0.1, 0.9, 0.1),
    tune.qloguniform(0.01, 1.0, 0.01),
    tune.randint(2, 6),
    tune.lograndint(1, 100),
    tune.qrandint(4, 20, 4),
    tune.choice(["a", "b", "c"]),
    tune.choice([(0.5, 0.75), (0.3, 0.6)]),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=range(len(DOMAINS)))
def test_draws_grid_points_and_ends_are_values_of_the_domain(domain):
    axis = read_axis("a", domain)
    stream = np.random.default_rng(0)
    drawn = [axis.draw(stream) for _ in range(300)]
    for value in (*drawn, *axis.points(5), *axis.ends):
        assert domain.is_valid(value), value
        assert type(value) is type(axis.ends[0])
    if isinstance(axis, Choice) or axis.whole:
        wanted = axis.options if isinstance(axis, Choice) else {axis.cut(x) for x in range(1, 200)}
        if len(wanted) < 10:
            assert set(drawn) == set(wanted)


def test_the_upper_bound_of_integers_is_left_out_as_by_ray_tune():
    assert read_axis("a", tune.randint(2, 5)).ends == (2, 4)
    assert read_axis("a", tune.qrandint(4, 20, 4)).ends == (4, 20)  # but not of quantized ones


def test_logarithmic_draws_are_uniform_in_the_logarithm():
    axis = read_axis("a", tune.loguniform(0.01, 1.0))
    drawn = [axis.draw(np.random.default_rng(number)) for number in range(400)]
    assert 0.4 < np.mean([value < 0.1 for value in drawn]) < 0.6
    assert axis.points(3) == [0.01, 0.1, 1.0]


def test_drawn_numbers_can_be_typed_again():
    axis = read_axis("a", tune.uniform(0.0, 1.0))
    drawn = [axis.draw(np.random.default_rng(number)) for number in range(50)]
    assert all(len(str(value).replace("0.", "").lstrip("0")) <= 4 for value in drawn)
    assert all(float(f"{value:.4g}") == value for value in drawn)


def test_cut_keeps_to_the_range_and_its_steps():
    assert Range(0.1, 0.5).cut(0.7) == 0.5
    assert Range(0.1, 0.5).cut(-1.0) == 0.1
    assert Range(0.1, 0.5).cut(0.123456) == 0.1235
    assert Range(0.15, 0.95, step=0.2).cut(0.1) == 0.2
    assert Range(0.15, 0.95, step=0.2).cut(2.0) == pytest.approx(0.8)
    assert Range(1, 9, whole=True).cut(3.6) == 4


def test_a_plain_value_and_a_grid_search_are_choices():
    assert read_axis("a", 0.3) == Choice((0.3,))
    assert read_axis("a", "tensor") == Choice(("tensor",))
    assert read_axis("a", [0.5, 0.75]) == Choice(((0.5, 0.75),))
    assert read_axis("a", tune.grid_search([1, 2])) == Choice((1, 2))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (tune.choice([]), "fusion.lr has nothing to choose from"),
        (tune.grid_search([]), "fusion.lr has nothing to choose from"),
        (tune.uniform(1.0, 0.1), "fusion.lr goes from 1 to 0.1: no values"),
        (tune.loguniform(1.0, 0.1), "fusion.lr goes from 1 to 0.1: no values"),
        (tune.randint(3, 3), "fusion.lr goes from 3 to 2"),
        (tune.randn(0.0, 1.0), "fusion.lr has no bounds"),
        (tune.sample_from(lambda spec: 1), "must be given by ray.tune's"),
        (lambda: 1, "must be given by ray.tune's"),
        ({"a": 1}, "must be given by ray.tune's"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_can_not_be_drawn_or_checked_is_refused(value, says):
    with pytest.raises(ConfigError, match=r"^space: ") as caught:
        read_axis("fusion.lr", value)
    assert says in str(caught.value)
