"""The Padé activation unit: the authors' numbers, gradients, extreme numbers, layouts, precision and what it keeps."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from shutil import which

import golden_tools as golden
import pytest
import torch
from measured import really_saved_bytes
from torch import Tensor

from nnunet_ext.architectures.blocks import pade as module
from nnunet_ext.architectures.blocks import pade_pieces
from nnunet_ext.architectures.blocks.pade import DENOMINATOR, NUMERATOR, PadeActivation, pade

GOLDEN = Path(__file__).parents[1] / "golden" / "ossnet"
FIXTURES = ("pau_leaky_init", "pau_filled", "pau_negative_denominator")
PROBES = [0.0] + [sign * size for size in (1e-6, 1e-3, 0.5, 1, 3, 10, 100, 1e3, 1e4, 1e6) for sign in (1, -1)]
FORMS = ("pieces", "terms")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of evaluation: in pieces (here of forty values), and whole, as everywhere but on a CPU."""
    monkeypatch.setattr(pade_pieces, "PIECE", 40)
    if request.param == "terms":
        monkeypatch.setattr(module, "_in_pieces", lambda x: False)


def plain(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """The definition, in float64."""
    x = x.double()
    p = sum(n * x**k for k, n in enumerate(numerator.double()))
    q = 1 + sum(d.abs() * x.abs() ** k for k, d in enumerate(denominator.double(), 1))
    return p / q


def coefficients(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Of no special form, signs included; leaves."""
    numerator = torch.tensor([0.1, -0.5, 1.2, -0.7, 0.3, 0.2], dtype=dtype)
    return numerator.requires_grad_(), torch.tensor([-0.3, 0.8, 0.05, -0.4], dtype=dtype).requires_grad_()


def values(*shape: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fixture_coefficients(spec: golden.Spec) -> tuple[Tensor, Tensor]:
    state = golden.reference_state(spec)
    numerator = spec["constructor"].get("numerator", state.get("weight_numerator"))
    denominator = spec["constructor"].get("denominator", state.get("weight_denominator"))
    return (
        torch.tensor(numerator, dtype=torch.float32).requires_grad_(),
        torch.tensor(denominator, dtype=torch.float32).requires_grad_(),
    )


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", FIXTURES)
def test_the_authors_numbers(name: str) -> None:
    spec, expected = golden.load(GOLDEN / name)
    numerator, denominator = fixture_coefficients(spec)
    given, upstream = (torch.from_numpy(golden.make_input(entry)) for entry in spec["inputs"])
    x = (4 * given).requires_grad_()
    y = pade(x, numerator, denominator)
    grads = torch.autograd.grad(y, (x, numerator, denominator), upstream)
    probes = torch.tensor(PROBES, requires_grad=True)
    probe_y = pade(probes, numerator, denominator)
    (probe_grad,) = torch.autograd.grad(probe_y.sum(), probes)
    found = dict(zip(("y", "grad_x", "grad_numerator", "grad_denominator"), (y, *grads), strict=True))
    found |= {"probe_y": probe_y, "probe_grad_x": probe_grad}
    assert set(found) == {entry["name"] for entry in spec["outputs"]}
    for output, value in found.items():
        assert golden.compare(output, value.detach().numpy(), spec, expected) <= 1e-5, output
    relative = (found["probe_y"].detach().numpy() - expected["probe_y"]) / abs(expected["probe_y"])
    assert abs(relative).max() <= 1e-5  # next to values of 1e6, small ones would not count


def test_initial_function() -> None:
    activation = PadeActivation()
    assert {name: tuple(p.shape) for name, p in activation.named_parameters()} == {
        "weight_numerator": (6,),
        "weight_denominator": (4,),
    }
    found = activation(torch.tensor([0.0, -10.0, -100.0, 10.0])).tolist()
    assert found == pytest.approx([0.03356, -2.27, -47.4, 7.83], rel=3e-3)
    assert (len(NUMERATOR), len(DENOMINATOR)) == (6, 4)


@pytest.mark.usefixtures("form")
def test_gradients_in_float64() -> None:
    x = torch.cat([values(40).double(), torch.tensor([1.5, -1.5, 20.0, -20.0, 5000.0, -5000.0]).double()])
    assert torch.autograd.gradcheck(pade, (x.requires_grad_(), *coefficients(torch.float64)))


@pytest.mark.usefixtures("form")
def test_gradients_at_zero_are_those_from_the_right() -> None:
    x = torch.zeros(1, requires_grad=True)
    numerator, denominator = torch.tensor([0.5, 1.0, 0, 0, 0, 0]), torch.tensor([2.0, 0, 0, 0], requires_grad=True)
    assert torch.autograd.grad(pade(x, numerator, denominator), x)[0].item() == 1 - 0.5 * 2
    ones = torch.ones(1)
    (grad,) = torch.autograd.grad(pade(ones, numerator, denominator), denominator)
    assert torch.allclose(grad, torch.full((4,), -1.5 / 9))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """As exact as one rounding of the result, and finite far beyond where x^5 is."""
    numerator, denominator = coefficients()
    given = torch.cat([values(200), torch.tensor([1e4, -1e4, 100.0, -100.0])]).to(dtype)
    x = given.clone().requires_grad_()
    y = pade(x, numerator, denominator)
    grads = torch.autograd.grad(y, (x, numerator, denominator), torch.ones_like(y))
    exact = given.double().requires_grad_()
    wanted = plain(exact, numerator, denominator)
    wanted_grads = torch.autograd.grad(wanted.sum(), (exact, numerator, denominator))
    assert (y.dtype, grads[0].dtype, grads[1].dtype) == (dtype, dtype, torch.float32)
    for found, value in zip((y, *grads), (wanted, *wanted_grads), strict=True):
        assert found.isfinite().all()
        rounding = torch.finfo(dtype).eps if found.dtype == dtype else 1e-5
        torch.testing.assert_close(found.double(), value.double(), rtol=rounding, atol=1e-5 * value.abs().max().item())


@pytest.mark.usefixtures("form")
def test_any_float32_number() -> None:
    x = torch.tensor([1e20, -1e20, 3e38, 1e-38, torch.inf, torch.nan], requires_grad=True)
    activation = PadeActivation()
    y = activation(x)
    y[:4].sum().backward()
    slope = NUMERATOR[5] / DENOMINATOR[3]
    torch.testing.assert_close(y[:4], torch.tensor([slope * 1e20, -slope * 1e20, slope * 3e38, NUMERATOR[0]]))
    assert x.grad is not None
    torch.testing.assert_close(x.grad[:3], torch.full((3,), slope))
    assert y[4].item() == torch.inf
    assert y[5].isnan()


@pytest.mark.usefixtures("form")
def test_sums_over_many_values_are_exact() -> None:
    numerator, denominator = coefficients()
    x = values(100_000, scale=1.0) + 2
    grads = torch.autograd.grad(pade(x, numerator, denominator).sum(), (numerator, denominator))
    wanted = torch.autograd.grad(plain(x, numerator, denominator).sum(), (numerator, denominator))
    for found, value in zip(grads, wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=2e-6, atol=0)


LAYOUTS = {
    "points": values(7, 11),
    "contiguous": values(2, 5, 3, 4, 3),
    "channels last 3d": values(2, 5, 3, 4, 3).to(memory_format=torch.channels_last_3d),
    "channels last": values(2, 5, 3, 4).to(memory_format=torch.channels_last),
    "transposed": values(5, 30).t(),
    "every other": values(5, 30)[:, ::2],
    "expanded": values(5, 1).expand(5, 9),
    "one value": values(1)[0],
    "empty": values(0, 3),
}


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    given = LAYOUTS[layout]
    x = given.detach().requires_grad_()
    numerator, denominator = coefficients()
    y = pade(x, numerator, denominator)
    upstream = values(*x.shape, seed=1)  # contiguous, whatever x is
    grads = torch.autograd.grad(y, (x, numerator, denominator), upstream)
    wanted = plain(x, numerator, denominator)
    wanted_grads = torch.autograd.grad(wanted, (x, numerator, denominator), upstream.double())
    assert y.stride() == torch.empty_like(given).stride()
    for found, value in zip((y, *grads), (wanted, *wanted_grads), strict=True):
        torch.testing.assert_close(found, value.to(found.dtype), rtol=2e-5, atol=1e-5)


def test_the_output_may_be_overwritten() -> None:
    x = values(3, 4).requires_grad_()
    (grad,) = torch.autograd.grad(pade(x, *coefficients()).mul_(2).sum(), x)
    (wanted,) = torch.autograd.grad(2 * plain(x, *coefficients()).sum(), x)
    torch.testing.assert_close(grad, wanted)


@pytest.mark.usefixtures("form")
def test_only_the_input_is_kept() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), PadeActivation())
    shape = (2, 1, 6, 7, 8)
    activation_bytes = 4 * 4 * 2 * 6 * 7 * 8
    assert really_saved_bytes(network, shape) == activation_bytes * (1 + 2)


@pytest.mark.usefixtures("form")
def test_autocast_changes_nothing() -> None:
    x = values(50).requires_grad_()
    results = []
    for enabled in (False, True):
        numerator, denominator = coefficients()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = pade(x, numerator, denominator)
            results.append((y, *torch.autograd.grad(y.sum(), (x, numerator, denominator))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(backend: str) -> None:
    if backend == "inductor" and not (which("g++") and (Path(sysconfig.get_path("include")) / "Python.h").is_file()):
        pytest.skip("no C++ compiler, or no headers of Python")
    results = []
    for function in (pade, torch.compile(pade, backend=backend, fullgraph=True)):
        x = torch.cat([values(60), torch.tensor([1e6, -1e6, 0.0, 1.0])]).requires_grad_()
        numerator, denominator = coefficients()
        y = function(x, numerator, denominator)
        results.append((y, *torch.autograd.grad(y.cos().sum(), (x, numerator, denominator))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_refused() -> None:
    x = values(5).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiated once; leave out create_graph=True"):
        torch.autograd.grad(pade(x, *coefficients()).sum(), x, create_graph=True)


def test_coefficients_of_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5,\) and \(4,\); they must be \(6,\) and \(4,\)"):
        pade(values(3), torch.ones(5), torch.ones(4))


def test_on_the_meta_device() -> None:
    activation = PadeActivation().to("meta")
    assert activation(torch.empty(2, 3, device="meta", dtype=torch.float16)).dtype == torch.float16
