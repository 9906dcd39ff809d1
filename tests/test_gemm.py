"""Linear layers by oneDNN: what they give is what torch's give, and where they are taken."""

import copy

import pytest
import torch
from torch import nn

from rlreason import gemm
from rlreason.gemm import Linear, _Linear, product, speed_up

AMD, INTEL = "vendor_id\t: AuthenticAMD\n", "vendor_id\t: GenuineIntel\n"


@pytest.fixture
def maker(tmp_path, monkeypatch):
    """Says who made the processor."""

    def say(told):
        (tmp_path / "cpuinfo").write_text(told)
        monkeypatch.setattr(gemm, "CPU", tmp_path / "cpuinfo")
        gemm.better.cache_clear()

    yield say
    gemm.better.cache_clear()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_values_and_gradients_are_those_of_torch(maker, bias, shape):
    maker(AMD)
    torch.manual_seed(0)
    x, layer = torch.randn(*shape, 33, requires_grad=True), nn.Linear(33, 17, bias=bias)
    upstream = torch.randn(*shape, 17)
    found = []
    for one in (layer, speed_up(copy.deepcopy(layer))):
        x.grad = None
        y = one(x)
        (y * upstream).sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in one.parameters())])
    assert type(one) is Linear
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in layer.named_parameters()]
    for theirs, ours in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-5


def test_gradients_are_those_of_the_formula():
    """In double precision, which oneDNN does not take: the formula is the same, and finite differences tell."""
    torch.manual_seed(0)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (4, 5), (4,))]
    assert torch.autograd.gradcheck(_Linear.apply, given)


def test_an_upstream_gradient_that_is_one_number_spread_out_will_do(maker):
    maker(AMD)
    x, layer = torch.randn(6, 8, requires_grad=True), speed_up(nn.Linear(8, 4))
    layer(x).sum().backward()
    assert (x.grad - layer.weight.sum(0)).abs().max() < 1e-5


def test_a_weight_that_does_not_learn_gets_no_gradient(maker):
    maker(AMD)
    layer = speed_up(nn.Linear(8, 4)).requires_grad_(False)
    x = torch.randn(6, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize(
    ("told", "dtype", "expected"),
    [
        (AMD, torch.float32, Linear),
        (INTEL, torch.float32, nn.Linear),  # MKL uses the whole width of its own maker's
        ("", torch.float32, nn.Linear),
        (AMD, torch.bfloat16, nn.Linear),
    ],
)
def test_it_is_taken_where_it_is_faster(maker, told, dtype, expected):
    maker(told)
    model = nn.Sequential(nn.Embedding(3, 8), nn.Linear(8, 8, dtype=dtype))
    assert [type(layer) for layer in speed_up(model)] == [nn.Embedding, expected]


def test_what_oneDNN_does_not_take_is_torchs(maker):
    maker(AMD)
    a, b = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(product(a, b), a @ b.t())
