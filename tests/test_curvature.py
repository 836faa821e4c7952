"""Spectra of Hessians: against matrices that are known, finite differences, and each other."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import dss
import dss.task as task_module
from dss.geometry import critical_point, shuffled, spectrum
from dss.geometry.curvature import _parts_of_loss, _products
from dss.networks.sequences import WordLSTM
from dss.problems import PROBLEMS

DOUBLE = {"dtype": torch.float64}


def seed(k=0):
    return torch.Generator().manual_seed(k)


def quadratic(n, k=0):
    """A form with eigenvalues from -2 to 5 in random directions, and its Hessian."""
    values = torch.linspace(-2, 5, n, **DOUBLE)
    turn, _ = torch.linalg.qr(torch.randn(n, n, generator=seed(k), **DOUBLE))
    matrix = turn @ torch.diag(values) @ turn.T
    return dss.landscape(lambda v: ((v @ matrix) * v).sum(-1) / 2, n), values, matrix


def mlp(**options):
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(40, 3, generator=seed(1))
    y = torch.randint(2, (40,), generator=seed(2))
    return dss.Task.from_module(net, "cross_entropy", (x, y), (x, y), **options)


def test_the_spectrum_of_a_quadratic_form_is_its_own():
    task, values, matrix = quadratic(30)
    theta = torch.randn(30, generator=seed(3), **DOUBLE)
    found = spectrum(task, theta)
    assert found.eigenvalues == pytest.approx(values.numpy(), abs=1e-10) and found.is_whole
    assert found.index == int((values < 0).sum()) and found.index_is_known
    assert found.trace == pytest.approx(float(values.sum())) and found.trace_error == 0
    assert found.gradient_norm == pytest.approx(float((matrix @ theta).norm()))
    assert found.loss == pytest.approx(float(task.losses(theta[None])))
    assert found.sharpness == pytest.approx(5)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_both_ends_of_a_large_form_are_found(k):
    task, values, _ = quadratic(60)
    found = spectrum(task, torch.zeros(60, **DOUBLE), k, n_probes=200)
    expected = torch.cat([values[:k], values[-k:]]).numpy()
    assert found.eigenvalues == pytest.approx(expected, abs=1e-5) and not found.is_whole
    n_negative = int((values < 0).sum())  # 18
    assert found.index == min(k, n_negative) and not found.index_is_known
    assert abs(found.trace - float(values.sum())) < 4 * found.trace_error
    # Of vectors of signs, the variance is twice the sum of the squares off the diagonal.
    matrix = quadratic(60)[2]
    off = matrix - torch.diag(matrix.diag())
    assert found.trace_error == pytest.approx(math.sqrt(2 * float((off**2).sum()) / 200), rel=0.25)


@pytest.mark.parametrize("rank", [10, 40])
def test_many_equal_eigenvalues_are_all_found(rank):
    """A form that is flat in most directions, as the loss is where a network fits all samples."""
    values = torch.cat([torch.zeros(90 - rank, **DOUBLE), torch.logspace(-4, 1, rank, **DOUBLE)])
    turn, _ = torch.linalg.qr(torch.randn(90, 90, generator=seed(1), **DOUBLE))
    matrix = turn @ torch.diag(values) @ turn.T
    task = dss.landscape(lambda v: ((v @ matrix) * v).sum(-1) / 2, 90)
    found = spectrum(task, torch.zeros(90, **DOUBLE), 4, n_probes=2)
    expected = torch.cat([values[:4], values[-4:]]).numpy()
    assert found.eigenvalues == pytest.approx(expected, abs=2e-5) and found.index == 0
    assert found.index_is_known


def test_a_loss_that_is_flat_or_linear_has_no_curvature():
    flat = dss.landscape(lambda v: torch.ones(v.shape[:-1], dtype=v.dtype), 300)
    slope = dss.landscape(lambda v: v.sum(-1), 300)
    for task, norm in ((flat, 0), (slope, math.sqrt(300))):
        for k in (None, 3):
            found = spectrum(task, torch.zeros(300, **DOUBLE), k)
            assert not found.eigenvalues.any() and found.index == 0 and found.trace == 0
            assert found.gradient_norm == pytest.approx(norm)


def test_the_linear_unit_has_a_saddle_of_index_one():
    task = PROBLEMS["unit"].task("unit")
    found = spectrum(task, torch.zeros(2, **DOUBLE))
    assert found.eigenvalues == pytest.approx([-2, 2]) and found.index == 1
    assert found.gradient_norm == 0 and found.loss == 1
    flat = spectrum(task, torch.ones(2, **DOUBLE))  # in a valley: along it nothing changes
    assert flat.index == 0 and flat.eigenvalues == pytest.approx([0, 4], abs=1e-12)


def test_a_network_agrees_with_finite_differences():
    task = mlp()
    theta = task.init(1, seed(4))[0]
    found, double = spectrum(task, theta), task.to(dtype=torch.float64)
    step, theta = 1e-5, theta.double()
    sides = (theta + sign * step * torch.eye(len(theta), **DOUBLE) for sign in (1, -1))
    plus, minus = (double.gradients(v)[1] for v in sides)
    matrix = ((plus - minus) / (2 * step)).numpy()
    expected = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert found.eigenvalues == pytest.approx(expected, abs=1e-8)
    assert found.gradient_norm == pytest.approx(float(double.gradients(theta[None])[1].norm()))


def test_lanczos_and_the_whole_matrix_agree_on_a_network():
    task = mlp()
    theta = task.init(1, seed(5))[0]
    whole = spectrum(task, theta)
    for chunk in (None, 7):
        ends = spectrum(task, theta, 4, chunk=chunk, n_probes=100)
        both = np.concatenate([whole.eigenvalues[:4], whole.eigenvalues[-4:]])
        assert ends.eigenvalues == pytest.approx(both, abs=1e-6 * whole.sharpness)
        assert abs(ends.trace - whole.trace) < 4 * ends.trace_error
    parts = spectrum(task, theta, chunk=7)
    assert parts.eigenvalues == pytest.approx(whole.eigenvalues, abs=1e-12)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    again = spectrum(task, theta, 4, generator=seed(9))
    assert again.trace == spectrum(task, theta, 4, generator=seed(9)).trace
    assert again.trace != spectrum(task, theta, 4, generator=seed(8)).trace


def test_small_sizes_are_whole():
    task, values, _ = quadratic(4)
    for k in (1, 2, 4):
        found = spectrum(task, torch.zeros(4, **DOUBLE), k)
        assert found.is_whole == (2 * k >= 3)
        assert found.eigenvalues[[0, -1]] == pytest.approx(values[[0, -1]].numpy())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(3, 10)

    def forward(self, x):
        x = x + self.second(torch.tanh(self.norm(self.first(x))))
        return self.last(x.mean(dim=(2, 3)))


def residual():
    net = dss.batch_statistics(Residual(), torch.randn(8, 3, 8, 8, generator=seed(1)))
    return net, torch.randn(12, 3, 8, 8, generator=seed(2)), torch.arange(12) % 10


def recurrent():
    words = torch.randint(9, (6, 5), generator=seed(2))
    return WordLSTM(9, 4, 1), words, words


KINDS = {"ResNet with BatchNorm": residual, "LSTM": recurrent}


@pytest.mark.parametrize("kind", KINDS)
def test_other_networks_have_spectra_too(kind):
    torch.manual_seed(0)
    net, x, y = KINDS[kind]()
    output = (lambda o: o.movedim(-1, 1)) if kind == "LSTM" else None
    task = dss.Task.from_module(net, "cross_entropy", (x, y), (x, y), output=output)
    theta = task.init(1, seed(3))[0]
    found = spectrum(task, theta, 2, n_probes=2)
    assert np.isfinite(found.eigenvalues).all() and found.sharpness > 0
    double = task.to(dtype=torch.float64)
    # Along a direction the products are what gradients change by.
    direction = torch.randn(task.n_params, generator=seed(6), **DOUBLE)
    product = _products(_parts_of_loss(double, "test", None), theta.double())(direction)
    step = 1e-6
    sides = [theta.double() + sign * step * direction for sign in (1, -1)]
    plus, minus = (double.gradients(v[None])[1][0] for v in sides)
    assert product == pytest.approx(((plus - minus) / (2 * step)).numpy(), rel=1e-3, abs=1e-5)


def test_networks_are_taken_and_rows_are_plain():
    task = mlp()
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    row = spectrum(task, net, split="train").summary()
    assert row["loss"] == pytest.approx(float(task.losses(task.theta(net)[None])), rel=1e-6)
    assert all(isinstance(v, int | float) for v in row.values())


REFUSED = {
    "k": ({"k": 0}, ValueError, "k is 0"),
    "too many": ({"k": 99}, ValueError, "k is 99"),
    "split": ({"split": "all"}, ValueError, "unknown split 'all'"),
    "chunk": ({"chunk": 0}, ValueError, "chunk is 0"),
    "probes": ({"n_probes": 1}, ValueError, "n_probes is 1"),
    "tolerance": ({"tolerance": 0}, ValueError, "tolerance is 0"),
    "generator": ({"generator": 3}, TypeError, "generator"),
    "shape": ({"theta": torch.zeros(3)}, ValueError, "theta has shape"),
    "NaN": ({"theta": torch.full((38,), torch.nan)}, ValueError, "theta"),
    "nothing": ({"theta": None}, TypeError, "theta is a NoneType"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    change, error, said = REFUSED[name]
    given = {"theta": torch.zeros(38)} | change
    with pytest.raises(error, match=said):
        spectrum(mlp(), given.pop("theta"), **given)


# --- critical points, and curvature relative to the size of parameters


def saddle(theta):
    return theta[..., 0] ** 2 - 3 * theta[..., 1] ** 2


def test_a_descent_of_the_gradient_ends_at_the_saddle():
    task = dss.landscape(saddle, 2)
    start = torch.tensor([0.3, -0.4], dtype=torch.float64)
    end = critical_point(task, start)
    assert end.converged and end.theta.abs().max() < 1e-9
    assert end.distance == pytest.approx(0.5) and abs(end.loss) < 1e-15
    found = spectrum(task, end.theta)
    assert found.index == 1 and found.eigenvalues.tolist() == pytest.approx([-6, 2])


def test_a_slope_without_a_critical_point_is_none():
    task = dss.landscape(lambda theta: theta[..., 0] + 0.01 * theta[..., 1] ** 2, 2)
    end = critical_point(task, torch.tensor([0.3, -0.4], dtype=torch.float64))
    assert not end.converged and end.gradient_norm == pytest.approx(1)


def test_the_pass_of_one_linear_unit_is_found_from_nearby(unit):
    end = critical_point(unit, torch.tensor([0.1, -0.2], dtype=torch.float64))
    assert end.converged and end.loss == pytest.approx(1)
    assert spectrum(unit, end.theta).index == 1


def test_a_trained_network_is_polished(seeded):
    task = dss.quad("tanh")
    trained = dss.train_to(task, task.init(1, seeded(1)), 1e-3, optimizer="adam", lr=0.01)
    end = critical_point(task, trained.thetas[0], tolerance=1e-4, max_steps=500)
    assert (
        end.n_steps <= 500 and end.gradient_norm < spectrum(task, trained.thetas[0]).gradient_norm
    )
    assert end.converged == (end.gradient_norm <= 1e-4)


@pytest.mark.parametrize("k", [None, 2])
def test_relative_curvature_does_not_know_the_scale_of_units(k, seeded):
    task = dss.digits("mlp", n_eval=20) if k else dss.quad()
    theta = task.init(1, seeded(2))[0].double()
    copy = shuffled(task.to(dtype=torch.float64), theta, seeded(3), spread=0.5)
    one, other = (spectrum(task, t, k, relative=True, tolerance=1e-8) for t in (theta, copy))
    assert one.eigenvalues == pytest.approx(other.eigenvalues, rel=1e-5, abs=1e-9)
    raw = [spectrum(task, t, k).sharpness for t in (theta, copy)]
    assert raw[0] != pytest.approx(raw[1], rel=1e-2), "raw curvature does"


def test_relative_curvature_is_that_of_the_scaled_matrix(unit):
    theta = torch.tensor([0.6, 1.6], dtype=torch.float64)
    a, b = theta.tolist()
    hessian = np.array([[2 * b * b, 4 * a * b - 2], [4 * a * b - 2, 2 * a * a]])
    exact = np.linalg.eigvalsh(np.diag([a, b]) @ hessian @ np.diag([a, b]))
    assert spectrum(unit, theta, relative=True).eigenvalues.tolist() == pytest.approx(
        exact.tolist()
    )


def test_flat_directions_count_by_their_share(unit):
    found = spectrum(unit, torch.zeros(2, dtype=torch.float64))
    assert (found.index_beyond(0), found.index_beyond(0.9), found.index) == (1, 1, 1)
    tilted = spectrum(
        dss.landscape(lambda t: t[..., 0] ** 2 - 1e-4 * t[..., 1] ** 2, 2), unit.init(1)[0]
    )
    assert (tilted.index, tilted.index_beyond(1e-3), tilted.index_beyond(1e-5)) == (1, 0, 1)
    with pytest.raises(ValueError, match="share"):
        found.index_beyond(1)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"tolerance": 0}, ValueError, "tolerance is 0"),
        ({"max_steps": 0}, ValueError, "max_steps is 0"),
        ({"split": "all"}, ValueError, "unknown split 'all'"),
        ({"chunk": 0}, ValueError, "chunk is 0"),
        ({"theta": torch.zeros(3)}, ValueError, "theta has shape"),
    ],
)
def test_what_no_critical_point_can_be_sought_with_is_refused(given, error, said):
    task = dss.quad()
    given = {"theta": task.init(1)[0]} | given
    with pytest.raises(error, match=said):
        critical_point(task, given.pop("theta"), **given)


def test_a_large_network_has_no_whole_hessians():
    task = dss.digits("mlp", n_eval=5)
    with pytest.raises(ValueError, match="3,466 parameters"):
        critical_point(task, task.init(1)[0])
    with pytest.raises(TypeError, match="relative"):
        spectrum(task, task.init(1)[0], relative=1)


def test_a_descent_says_whether_its_hessians_were_used_up(seeded):
    task = dss.quad("tanh")
    theta = dss.train_to(task, task.init(1, seeded(4)), 1e-2, optimizer="adam").thetas[0]
    few = critical_point(task, theta, max_steps=2)
    assert not few.ended and not few.converged and few.n_steps <= 2
    assert critical_point(dss.landscape(saddle, 2), torch.ones(2).double()).ended


def test_a_gradient_that_is_not_finite_is_named():
    steep = dss.landscape(lambda theta: theta[..., 0].exp(), 1)
    with pytest.raises(ValueError, match="gradient of .* is not finite"):
        critical_point(steep, torch.tensor([800.0], dtype=torch.float64))


def test_a_hessian_row_by_row_is_the_same():
    task, values, matrix = quadratic(8)
    parts, theta = _parts_of_loss(task, "test", None), torch.zeros(8, **DOUBLE)
    rows = torch.stack([_products(parts, theta)(e) for e in torch.eye(8, **DOUBLE)])
    assert torch.allclose(rows, matrix, atol=1e-12)


def test_only_the_split_that_is_asked_for_is_copied(monkeypatch, seeded):
    task, sizes = dss.digits("mlp", n_eval=20), []
    real = task_module.sample_on

    def noting(sample, *arguments):
        sizes.append(len(sample[1]))
        return real(sample, *arguments)

    monkeypatch.setattr(task_module, "sample_on", noting)
    spectrum(task, task.init(1, seeded(1))[0], 1, tolerance=0.1)
    assert sizes == [20]
