from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from raygf.config.run import LossConfig
from raygf.training.losses import distilled_losses, exit_hits, exit_losses, make_losses


def example(dtype=torch.float32):
    logits = list(torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True).to(dtype).unbind())
    return logits, torch.tensor([0, 3, 1, 2, 0])


def test_losses_are_mean_cross_entropies_of_each_exit():
    logits, labels = example()
    expected = torch.stack([F.cross_entropy(part, labels) for part in logits])
    assert_close(exit_losses(logits, labels), expected)


def test_pinned_loss():
    logits = [torch.zeros(2, 4), torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]).repeat(1, 2)]
    losses = exit_losses([logits[0], logits[1]], torch.tensor([0, 1]))
    assert_close(losses, torch.tensor([math.log(4), (math.log(8 / 3) + math.log(4)) / 2]))


def test_gradient_of_one_loss_reaches_its_exit_alone():
    leaves = [torch.randn(5, 4, requires_grad=True) for _ in range(3)]
    labels = torch.tensor([0, 3, 1, 2, 0])
    exit_losses(leaves, labels)[1].backward()
    reference = leaves[1].detach().clone().requires_grad_()
    F.cross_entropy(reference, labels).backward()
    assert_close(leaves[1].grad, reference.grad)
    assert not leaves[0].grad.any() and not leaves[2].grad.any()


def test_half_precision_logits_give_float32_losses():
    logits, labels = example(torch.bfloat16)
    losses = exit_losses(logits, labels)
    assert losses.dtype == torch.float32
    assert_close(losses, exit_losses([part.float() for part in logits], labels))


def test_losses_need_no_single_list_type():
    logits, labels = example()
    assert torch.equal(exit_losses(tuple(logits), labels), exit_losses(logits, labels))


def test_hits():
    one = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    two = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    hits = exit_hits([one, two], torch.tensor([0, 1, 1]))
    assert hits.dtype == torch.int64
    assert hits.tolist() == [2, 2]
    assert exit_hits([one, two], torch.tensor([1, 1, 1])).tolist() == [1, 3]


def test_permuting_images_changes_nothing():
    logits, labels = example()
    order = torch.tensor([4, 2, 0, 1, 3])
    turned = [part[order] for part in logits]
    assert_close(exit_losses(turned, labels[order]), exit_losses(logits, labels))
    assert torch.equal(exit_hits(turned, labels[order]), exit_hits(logits, labels))


def test_distilled_losses_by_hand():
    shallow = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    deep = torch.tensor([[0.5, 1.5, 0.0]], requires_grad=True)
    labels = torch.tensor([1])
    found = distilled_losses([shallow, deep], labels, gamma=0.9, temperature=3.0)
    teacher, student = (deep / 3).softmax(1), (shallow / 3).softmax(1)
    divergence = (teacher * (teacher.log() - student.log())).sum()
    plain = torch.nn.functional.cross_entropy(shallow, labels)
    torch.testing.assert_close(found[0], 0.1 * plain + 0.9 * 9 * divergence)
    torch.testing.assert_close(found[1], torch.nn.functional.cross_entropy(deep, labels))


def test_the_teacher_gets_no_gradient():
    shallow = torch.randn(4, 3, requires_grad=True)
    deep = torch.randn(4, 3, requires_grad=True)
    distilled_losses([shallow, deep], torch.tensor([0, 1, 2, 0]), 0.9, 3.0)[0].backward()
    assert not deep.grad.any() and shallow.grad.any()


def test_distillation_without_softened_share_is_plain():
    logits = [torch.randn(5, 3) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(distilled_losses(logits, labels, 0.0, 3.0), exit_losses(logits, labels))
    torch.testing.assert_close(
        distilled_losses(logits[:1], labels, 0.9, 3.0), exit_losses(logits[:1], labels)
    )


def test_the_configuration_chooses_the_losses():
    assert make_losses(LossConfig()) is exit_losses
    logits, labels = [torch.randn(2, 3) for _ in range(2)], torch.tensor([0, 2])
    chosen = make_losses(LossConfig(distill=True, gamma=0.5, temperature=2.0))
    torch.testing.assert_close(chosen(logits, labels), distilled_losses(logits, labels, 0.5, 2.0))
