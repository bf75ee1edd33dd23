"""The recipes of Table 2 have the paper's numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raygf.config.recipes import RECIPES, get_recipe
from raygf.config.run import MSDNetConfig, OptimConfig
from raygf.methods.registry import check_method

METHODS = ("metagf", "sgd", "ge", "pcgrad")


@pytest.mark.parametrize("method", METHODS)
def test_imagenet_recipes_have_the_papers_numbers(method: str) -> None:
    run = get_recipe(f"imagenet-msdnet-{method}")
    check_method(run.method)
    assert (run.method, run.rounds, run.batch_size) == (method, 90, 512)
    assert run.optim == OptimConfig(0.1, 0.9, 1e-4, (0.5, 0.75), 0.1, False)
    assert (run.data.source, run.data.val, run.data.crop, run.data.resize) == (
        "imagefolder",
        50_000,
        224,
        256,
    )
    assert run.data.flip and run.data.test is None and run.data.train_limit is None
    assert run.model.msdnet == MSDNetConfig("conv7", 5, 4, 4, 32, 16, (1, 2, 4, 4), 0.5, None)
    assert (run.fusion.segments, run.fusion.lr) == ("tensor", 0.1)
    assert (run.loss.aux, run.loss.coefficients, run.loss.distill) == (0.1, "ones", False)
    assert replace(run, method="metagf") == get_recipe("imagenet-msdnet-metagf")
    assert "Table 2" in (RECIPES[f"imagenet-msdnet-{method}"].__doc__ or "")
