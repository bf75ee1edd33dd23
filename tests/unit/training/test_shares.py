import pytest
import torch

from raygf.training.peers import Peers
from raygf.training.shares import average_buffers, mean_buffers, shares_of


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_cover_a_batch_and_their_means_add_up_to_its_mean(count):
    """A batch too small for all is run whole by every one, and counts once."""
    for size in range(1, 12):
        values = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        shares = list(shares_of((values, torch.arange(size)), range(count), count))
        assert all(len(share.labels) >= min(size, 2) for share in shares)
        if size >= 2 * count:
            assert torch.cat([share.labels for share in shares]).tolist() == list(range(size))
        else:
            assert [share.weight for share in shares] == [1.0] + [0.0] * (count - 1)
        total = sum(share.images.mean() * share.weight for share in shares)
        assert total.item() == pytest.approx(values.mean().item(), rel=1e-12)


def test_the_mean_of_equal_buffers_is_that_buffer():
    """Of three that hold the same, in turn in one process and apart in three."""
    values, count = torch.rand(2000, generator=torch.Generator().manual_seed(0)), torch.tensor(7)
    merged = mean_buffers([{"mean": values, "steps": count + rank} for rank in range(3)])
    assert torch.equal(merged["mean"], values) and merged["steps"] == 7  # counters are the first's
    peers, buffers = Peers(3), [values.clone()]
    peers.sum_ = lambda tensor: tensor.add_(tensor.clone()).add_(tensor / 2)
    average_buffers(buffers, peers)
    assert torch.equal(buffers[0], values)
