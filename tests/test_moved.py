"""Sums over a parameter, by which it is seen to have moved."""

import torch

from rlreason import moved


def test_sums_are_exact_however_many_parts_they_are_made_of(monkeypatch):
    values = torch.randn(1000).bfloat16()
    whole = (values.double().sum().item(), values.double().square().sum().item())
    assert moved.sums(values) == whole
    sizes = []
    monkeypatch.setattr(moved, "PART", 64)
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda t, size: sizes.append(size) or split(t, size))
    total, squares = moved.sums(values)
    assert abs(total - whole[0]) < 1e-9
    assert abs(squares - whole[1]) < 1e-9
    assert sizes == [64], "float64 of a large embedding would not fit"
