"""Muon against timm's, AdamW against PyTorch's, both by live comparison."""

import copy

import pytest
import torch
from timm.optim.muon import Muon as TimmMuon

from scalablevit.classification.muon import Muon, orthogonalise


def parameters(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def walk(optimizer, moved, steps=5):
    """Steps along gradients that differ from step to step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in moved:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_singular_values_become_one_and_singular_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonalise(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    diagonal = left.mT @ found @ right.mT
    values = diagonal.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.65
    assert values.max() < 1.25
    torch.testing.assert_close(diagonal, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_matrices_move_as_with_timm():
    shapes = [(8, 24), (24, 8), (8, 24), (12, 12)]
    ours, theirs = parameters(*shapes), parameters(*shapes)
    walk(Muon([{"params": ours, "is_matrix": True}], lr=0.02, weight_decay=0.1), ours)
    walk(TimmMuon(theirs, lr=0.02, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"), theirs)
    for one, other, before in zip(ours, theirs, parameters(*shapes), strict=True):
        # timm works in bfloat16, which has three digits.
        difference, distance = (one - other).detach().norm(), (other - before).detach().norm()
        assert difference < 0.02 * distance


def test_the_rest_moves_as_with_pytorch():
    shapes = [(7,), (3, 2, 3, 3), (5, 4)]
    ours, theirs = parameters(*shapes), parameters(*shapes)
    walk(Muon([{"params": ours, "is_matrix": False}], lr=0.02, weight_decay=0.1, betas=(0.8, 0.97)), ours)
    walk(torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.1, betas=(0.8, 0.97)), theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_continues_from_its_saved_state():
    def make(moved):
        groups = [{"params": moved[:2], "is_matrix": True}, {"params": moved[2:], "is_matrix": False, "lr": 0.01}]
        return Muon(groups, lr=0.02)

    shapes = [(8, 24), (8, 24), (7,)]
    first = parameters(*shapes)
    optimizer = make(first)
    walk(optimizer, first)
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    again = make(second)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(optimizer, first)
    walk(again, second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_what_has_no_gradient_stays():
    moved = parameters((8, 8), (8, 8), (5,), (5,))
    optimizer = Muon(
        [{"params": moved[:2], "is_matrix": True}, {"params": moved[2:], "is_matrix": False}], lr=0.1, weight_decay=0.1
    )
    walk(optimizer, [moved[0], moved[2]])
    before = parameters((8, 8), (8, 8), (5,), (5,))
    for index, stays in enumerate([False, True, False, True]):
        assert torch.equal(moved[index], before[index]) == stays


def test_a_gradient_of_zero_moves_nothing():
    matrix = parameters((4, 6))
    before = matrix[0].detach().clone()
    matrix[0].grad = torch.zeros(4, 6)
    Muon([{"params": matrix, "is_matrix": True}], lr=0.1).step()
    assert torch.equal(matrix[0], before)
