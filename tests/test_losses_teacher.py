"""The teacher that is the model itself."""

from __future__ import annotations

import torch
from torch import nn

from open_clip_triplet.losses.teacher import Teacher


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train(student: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[dict]:
    """Weights before the first and after every step."""
    seen = [{name: value.clone() for name, value in student.state_dict().items()}]
    for _ in range(steps):
        student(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
    return seen


def test_moving_average_is_that_of_the_steps():
    student = model()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
    teacher = Teacher(student, decay=0.8)
    with teacher.following(optimizer):
        weights = train(student, optimizer, 3)
    for name, value in teacher.model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == 3
            continue
        parts = [0.8**3, 0.2 * 0.8**2, 0.2 * 0.8, 0.2]
        expected = sum(part * seen[name] for part, seen in zip(parts, weights, strict=True))
        torch.testing.assert_close(value, expected)
    kept = teacher.model[0].weight.clone()
    train(student, optimizer, 1)
    assert torch.equal(teacher.model[0].weight, kept)
    with teacher.following(optimizer, weights[0]):
        assert torch.equal(teacher.model[0].weight, weights[0]["0.weight"])


def test_frozen_stays_and_neither_learns_nor_drops_out():
    student = model()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    teacher = Teacher(student)
    with teacher.following(optimizer):
        start = train(student, optimizer, 2)[0]
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, start[name])
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training and student.training
