"""The chain of stages and heads."""

import pytest
import torch
from torch import nn

from raygf.models.multi_exit import MultiExitNetwork


class Split(nn.Module):
    """A stage whose state is a tuple."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, 2 * x


class Difference(nn.Module):
    """A head, or stage, that takes a tuple."""

    def forward(self, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        assert isinstance(state, tuple)
        return state[1] - 3 * state[0]


def test_state_is_handed_on_as_it_is() -> None:
    network = MultiExitNetwork([Split(), Difference()], [Difference(), nn.Identity()])
    x = torch.arange(6.0).reshape(2, 3)
    first, second = network(x)
    torch.testing.assert_close(first, -x)
    torch.testing.assert_close(second, -x)


def test_exits_come_shallow_to_deep() -> None:
    network = MultiExitNetwork([nn.ReLU(), nn.Sigmoid()], [nn.Identity(), nn.Identity()])
    shallow, deep = network(torch.tensor([[-1.0, 0.0]]))
    assert shallow.tolist() == [[0.0, 0.0]]
    assert deep.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(("stages", "heads"), [(0, 0), (2, 1), (1, 2)])
def test_there_must_be_one_head_per_stage(stages: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{stages} stages and {heads} heads"):
        MultiExitNetwork([nn.Identity()] * stages, [nn.Identity()] * heads)
