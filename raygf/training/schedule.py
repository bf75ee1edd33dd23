"""What changes over the rounds: learning rates and loss coefficients. Rounds count from 1."""

from __future__ import annotations

from raygf.config import LossConfig, OptimConfig

_SDN_LAST = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)
_SDN_FIRST = 0.01


def decay_factor(round: int, rounds: int, optim: OptimConfig) -> float:
    """The factor of both learning rates in ``round``: ``decay`` once for every milestone passed."""
    done = round - 1 + 1e-9  # 0.55 * 100 is a little more than 55
    passed = sum(done >= share * rounds for share in optim.milestones)
    return float(optim.decay**passed)


def loss_coefficients(round: int, rounds: int, exits: int, loss: LossConfig) -> tuple[float, ...]:
    """The coefficients ``c_i`` of the exits' losses in ``round``.

    "ones" for MSDNet. "sdn": the inner exits ramp linearly from 0.01 in the first round to 0.15, 0.30, 0.45 …
    in the last one, the final exit keeps 1 (Kaya, Hong, Dumitras 2019).

    Raises:
        ValueError: "sdn" knows the end points of at most six inner exits.
    """
    if loss.coefficients == "ones":
        return (1.0,) * exits
    if exits - 1 > len(_SDN_LAST):
        raise ValueError(f"loss.coefficients = 'sdn' knows {len(_SDN_LAST)} inner exits, not {exits - 1}")
    share = (round - 1) / max(1, rounds - 1)
    return (*(_SDN_FIRST + share * (last - _SDN_FIRST) for last in _SDN_LAST[: exits - 1]), 1.0)


def exit_loss_weights(exit: int, coefficients: tuple[float, ...], aux: float) -> tuple[float, ...]:
    """Weights of all losses while ``exit`` trains: its own coefficient, ``aux`` (λ) times the others'."""
    return tuple(c if j == exit else aux * c for j, c in enumerate(coefficients))
