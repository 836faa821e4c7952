"""Clouds of noisy runs against what is known exactly of them."""

import re

import numpy as np
import pytest
import torch
from scipy import integrate, special

import dss
from dss.geometry import critical_point, noise, spectrum
from dss.geometry.noise import cloud, smoothed_losses

X = np.linspace(-2.5, 2.5, 1001)
STEP = X[1] - X[0]
WELLS = (X**2 - 1) ** 2


def wells(theta):
    return (theta[..., 0] ** 2 - 1) ** 2


@pytest.fixture(scope="module")
def two_wells():
    return dss.landscape(wells, 1, "two wells")


@pytest.fixture(scope="module")
def bowl():
    stiffness = torch.tensor([1.0, 4.0], dtype=torch.float64)
    return dss.landscape(lambda theta: (stiffness * theta**2).sum(-1) / 2, 2, "bowl")


def test_a_cloud_in_a_bowl_has_the_variance_of_its_recursion(bowl):
    lr, temperature, n = 0.1, 0.3, 4000
    found = cloud(bowl, torch.zeros(n, 2, dtype=torch.float64), temperature, lr, 200).thetas
    stiffness = torch.tensor([1.0, 4.0], dtype=torch.float64)
    expected = temperature / (stiffness * (1 - lr * stiffness / 2))
    errors = expected * (2 / n) ** 0.5
    assert ((found.var(0) - expected).abs() < 4 * errors).all()
    assert (found.mean(0).abs() < 4 * (expected / n).sqrt()).all()


def test_a_run_does_not_depend_on_its_company(two_wells, monkeypatch):
    thetas = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    until = {"until": lambda theta: theta[:, 0] > 1.2}
    whole = cloud(two_wells, thetas, 0.3, 0.01, 300, at=[0, 100, 300], **until)
    monkeypatch.setattr(noise, "NOISE_AT_A_TIME", 40)
    part = cloud(two_wells, thetas[3:5], 0.3, 0.01, 300, first=3, at=[0, 100, 300], **until)
    assert torch.equal(part.thetas, whole.thetas[3:5]) and torch.equal(part.steps, whole.steps[3:5])
    assert torch.equal(part.seen, whole.seen[:, 3:5]) and torch.equal(whole.seen[0], thetas)
    other = cloud(two_wells, thetas, 0.3, 0.01, 300, seed=1)
    assert not torch.equal(other.thetas, whole.thetas)


def test_without_temperature_it_is_plain_descent(bowl):
    theta = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    found = cloud(bowl, theta, 0, 0.1, 3)
    expected = theta * (1 - 0.1 * torch.tensor([1.0, 4.0], dtype=torch.float64)) ** 3
    torch.testing.assert_close(found.thetas, expected)
    assert found.steps.tolist() == [3] and not found.arrived.any() and found.seen.shape == (0, 1, 2)


def test_runs_end_where_they_arrive(bowl):
    theta = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    found = cloud(bowl, theta, 0, 0.1, 50, at=[0, 1, 50], until=lambda v: v[:, 0] < 0.8)
    assert found.steps.tolist() == [3, 0] and found.arrived.all()
    assert found.seen[:, 0, 0].tolist() == pytest.approx([1, 0.9, 0.9**3])


def test_temperatures_may_differ_by_run(bowl):
    theta = torch.zeros(3, 2, dtype=torch.float64)
    both = cloud(bowl, theta, torch.tensor([0.0, 0.1, 0.4], dtype=torch.float64), 0.1, 20).thetas
    assert (both[0] == 0).all()
    for run, temperature in ((1, 0.1), (2, 0.4)):
        alone = cloud(bowl, theta[:1], temperature, 0.1, 20, first=run).thetas[0]
        torch.testing.assert_close(both[run], alone, rtol=0, atol=0)


def test_networks_run_too():
    task = dss.quad(n_train=16, n_eval=16)
    thetas = task.init(3)
    found = cloud(task, thetas, 1e-4, 0.01, 5)
    assert found.thetas.shape == thetas.shape and found.thetas.dtype == thetas.dtype
    assert not torch.equal(found.thetas, thetas)


@pytest.fixture(scope="module")
def mean_of_samples():
    """One parameter theta and samples a, with the loss (theta - a)^2 / 2; and their variance."""
    a = torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    module = torch.nn.Linear(1, 1, bias=False).double()
    sample = torch.ones_like(a), a

    def half_square(output, y):
        return ((output - y) ** 2).mean() / 2

    task = dss.Task.from_module(module, half_square, sample, sample, metric=half_square)
    return task, float(a.mean()), float(a.var(unbiased=False))


@pytest.mark.parametrize("batch_size, lr", [(1, 0.1), (4, 0.4)])
def test_minibatches_have_the_variance_of_their_recursion(mean_of_samples, batch_size, lr):
    task, mean, variance = mean_of_samples
    theta, n = torch.full((3000, 1), mean, dtype=torch.float64), 3000
    found = cloud(task, theta, 0, lr, round(10 / lr), batch_size=batch_size).thetas
    expected = lr * variance / (2 * batch_size) / (1 - lr / 2)
    assert abs(float(found.var()) - expected) < 4 * expected * (2 / n) ** 0.5


def test_batches_of_a_run_do_not_depend_on_its_company(monkeypatch):
    task = dss.quad(n_train=16, n_eval=16)
    thetas = task.init(4, torch.Generator().manual_seed(1))
    whole = cloud(task, thetas, 1e-5, 0.05, 30, batch_size=4).thetas
    monkeypatch.setattr(noise, "NOISE_AT_A_TIME", 100)
    for first in range(4):
        alone = cloud(task, thetas[first : first + 1], 1e-5, 0.05, 30, batch_size=4, first=first)
        torch.testing.assert_close(alone.thetas, whole[first : first + 1], rtol=1e-5, atol=1e-7)
    other = cloud(task, thetas, 1e-5, 0.05, 30, batch_size=3).thetas
    assert not torch.equal(other, whole)


def test_a_gradient_on_own_batches_is_that_of_the_batch():
    task = dss.quad(n_train=16, n_eval=16).to(dtype=torch.float64)
    thetas = task.init(3, torch.Generator().manual_seed(1))
    batch = torch.tensor([[0, 1, 1], [5, 9, 2], [15, 15, 15]])
    slopes = noise._slopes_on(task, thetas, batch)
    for theta, rows, slope in zip(thetas, batch, slopes, strict=True):
        torch.testing.assert_close(slope, task.gradients(theta[None], rows)[1][0])


class LastOfLSTM(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.outside = torch.nn.LSTM(2, 3, batch_first=True), torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.outside(self.inside(x)[0][:, -1])


def mean_square_with_a_branch(output, y):
    """No loss for vmap: it looks at a number."""
    loss = ((output - y) ** 2).mean()
    return loss if float(loss.detach()) >= 0 else output.sum()


LINEAR = torch.nn.Flatten(), torch.nn.Linear(8, 1)
NORMED = LINEAR[0], torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4, track_running_stats=False)


@pytest.mark.parametrize("module, loss", [
    (LastOfLSTM(), "mse"),
    (torch.nn.Sequential(*LINEAR), mean_square_with_a_branch),
    (torch.nn.Sequential(*NORMED, torch.nn.Linear(4, 1)), "mse"),
], ids=["recurrent", "a loss not for vmap", "BatchNorm"])  # fmt: skip
def test_own_batches_of_networks_of_other_kinds(module, loss):
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(12, 4, 2, generator=generator), torch.randn(12, 1, generator=generator)
    metric = None if isinstance(loss, str) else loss
    task = dss.Task.from_module(module, loss, sample, sample, metric=metric)
    thetas, batch = task.init(2, generator), torch.tensor([[0, 1, 1], [5, 9, 2]])
    slopes = noise._slopes_on(task, thetas, batch)
    for theta, rows, slope in zip(thetas, batch, slopes, strict=True):
        expected = task.gradients(theta[None], rows)[1][0]
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)


def test_minibatches_need_samples_at_hand(bowl):
    with pytest.raises(ValueError, match="bowl has no samples"):
        cloud(bowl, torch.zeros(1, 2, dtype=torch.float64), 0, 0.1, 1, batch_size=2)
    task = dss.quad(n_train=16, n_eval=16)
    with pytest.raises(ValueError, match=r"batch_size is 17.*16"):
        cloud(task, task.init(1), 0, 0.1, 1, batch_size=17)


@pytest.mark.parametrize("width", [0.0, 0.1, 0.5, 1.0])
def test_a_smoothed_cosine_is_a_smaller_cosine(width):
    task = dss.landscape(lambda theta: torch.cos(3 * theta[..., 0]), 1)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    expected = np.exp(-4.5 * width**2) * torch.cos(3 * x[:, 0])
    torch.testing.assert_close(smoothed_losses(task, x, width), expected, rtol=0, atol=1e-10)


def test_a_smoothed_bowl_is_a_lifted_bowl(bowl):
    theta = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    found = smoothed_losses(bowl, theta, 0.2, n_samples=20_000)
    expected = bowl.losses(theta) + 0.02 * 5
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_local_entropy_lies_between_the_lowest_and_the_mean(two_wells):
    theta = torch.tensor([[0.0]], dtype=torch.float64)
    mean = float(smoothed_losses(two_wells, theta, 0.3))
    values = [float(smoothed_losses(two_wells, theta, 0.3, T)) for T in (1e-3, 0.1, 1.0, 1e6)]
    assert 0 <= values[0] < values[1] < values[2] < mean and values[3] == pytest.approx(mean)
    # a bowl of stiffness k: -T log E exp(-k xi^2 / 2T) = T/2 log(1 + k width^2 / T)
    bowl = dss.landscape(lambda theta: 2 * theta[..., 0] ** 2, 1)
    found = float(smoothed_losses(bowl, theta, 0.3, 0.5))
    assert found == pytest.approx(0.25 * np.log(1 + 4 * 0.09 / 0.5), rel=1e-9)


def test_a_density_settles_to_that_of_boltzmann():
    temperature = 0.2
    rest = noise.stationary_density(WELLS, STEP, temperature)
    assert rest.sum() * STEP == pytest.approx(1)
    again = noise.fokker_planck(WELLS, STEP, temperature, rest, [1.0, 50.0])
    np.testing.assert_allclose(again, [rest, rest], rtol=0, atol=1e-7)
    start = np.where(X < -1, rest, 0)
    start = start / (start.sum() * STEP)
    times = [0, 0.1, 0.5, 2, 10, 2000]
    densities = noise.fokker_planck(WELLS, STEP, temperature, start, times)
    np.testing.assert_allclose(densities.sum(1) * STEP, 1, rtol=1e-9)
    energies = [noise.free_energy(p, WELLS, STEP, temperature) for p in densities]
    assert (np.diff(energies) < 0).all() and densities.min() >= -1e-8
    weights = np.exp(-WELLS / temperature)
    lowest = -temperature * np.log(weights.sum() * STEP)
    assert energies[-1] == pytest.approx(lowest, abs=1e-3)
    assert noise.free_energy(rest, WELLS, STEP, temperature) == pytest.approx(lowest, abs=1e-12)


def test_a_bowl_spreads_as_ornstein_and_uhlenbeck_say():
    x, temperature = np.linspace(-4, 4, 801), 0.3
    start = np.exp(-((x - 1) ** 2) / 0.02)
    start = start / (start.sum() * 0.01)
    (found,) = noise.fokker_planck(x**2 / 2, 0.01, temperature, start, [0.7])
    mean = (found * x).sum() * 0.01
    variance = (found * (x - mean) ** 2).sum() * 0.01
    assert mean == pytest.approx(np.exp(-0.7), abs=1e-3)
    decayed = np.exp(-1.4)
    assert variance == pytest.approx(temperature * (1 - decayed) + 0.01 * decayed, rel=1e-3)


def test_a_cloud_follows_the_equation(two_wells):
    temperature, lr, n = 0.25, 0.004, 4000
    found = cloud(
        two_wells, torch.full((n, 1), -1.0).double(), temperature, lr, 1000, at=[250, 1000]
    )
    start = np.where(np.abs(X + 1) < STEP / 2, 1 / STEP, 0)
    densities = noise.fokker_planck(WELLS, STEP, temperature, start, lr * found.at.numpy())
    for density, seen in zip(densities, found.seen[:, :, 0].numpy(), strict=True):
        for place in (-1.0, -0.5, 0.0, 0.5):
            share = (density * (X < place)).sum() * STEP
            error = (share * (1 - share) / n) ** 0.5 + 1e-3
            assert abs((seen < place).mean() - share) < 4 * error + 2 * lr


def test_kramers_time_is_the_limit_of_the_exact_one():
    x = np.linspace(-4, 3, 7001)
    potential, ratios = (x**2 - 1) ** 2, []
    start, end = np.abs(x + 1).argmin(), np.abs(x - 1).argmin()
    for temperature in (0.2, 0.1, 0.05):
        exact = noise.mean_arrival_time(potential, x[1] - x[0], temperature, start, end)
        ratios.append(exact / noise.kramers_time(1.0, temperature, 8.0, -4.0))
    assert (np.diff(np.abs(np.array(ratios) - 1)) < 0).all() and abs(ratios[-1] - 1) < 0.03


def test_the_exact_time_between_two_parabolas():
    x = np.linspace(-9, 4, 26001)
    potential = (np.abs(x) - 1) ** 2 / 2
    start, end = np.abs(x + 1).argmin(), np.abs(x).argmin()
    found = noise.mean_arrival_time(potential, x[1] - x[0], 0.1, start, end)

    def inner(y):
        return (
            np.exp((y + 1) ** 2 / 0.2) * np.sqrt(np.pi / 20) * (1 + special.erf((y + 1) / 0.2**0.5))
        )

    assert found == pytest.approx(integrate.quad(inner, -1, 0)[0] / 0.1, rel=1e-4)


def test_runs_escape_in_the_time_that_is_exact(two_wells):
    temperature, lr, n = 0.4, 0.005, 800
    start = torch.full((n, 1), -1.0, dtype=torch.float64)
    run = cloud(two_wells, start, temperature, lr, 100_000, until=lambda theta: theta[:, 0] > 1)
    assert run.arrived.all()
    times = lr * run.steps.double()
    x = np.linspace(-4, 3, 7001)
    places = np.abs(x + 1).argmin(), np.abs(x - 1).argmin()
    exact = noise.mean_arrival_time((x**2 - 1) ** 2, x[1] - x[0], temperature, *places)
    assert abs(float(times.mean()) / exact - 1) < 4 / n**0.5 + 0.02  # the steps are finite


def test_runs_in_the_plane_take_the_pass_that_kramers_names():
    def two_passes(theta):
        y = theta[..., 1]
        return 2 * ((theta**2).sum(-1) - 1) ** 2 + y**2 / 2 + 0.15 * y**3

    task, n, temperature = dss.landscape(two_passes, 2, "two passes"), 400, 0.2
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(n, 1)
    run = cloud(task, start, temperature, 0.01, 10**6, until=lambda theta: theta[:, 0] < -0.5)
    low, tops = spectrum(task, start[0]).eigenvalues, []
    for y in (-0.9, 0.9):
        top = critical_point(task, torch.tensor([0.0, y], dtype=torch.float64))
        curved = spectrum(task, top.theta).eigenvalues
        tops.append((top.loss, noise.kramers_time(top.loss, temperature, low, curved)))
    (lower, slow_lower), (upper, slow_upper) = tops
    share = float((run.thetas[:, 1] < 0).double().mean())
    expected = slow_upper / (slow_lower + slow_upper)
    by_barriers = 1 / (1 + np.exp(-(upper - lower) / temperature))
    error = (share * (1 - share) / n) ** 0.5
    assert run.arrived.all() and abs(share - expected) < 2 * error < abs(share - by_barriers)


def test_kramers_time_knows_curvatures():
    low, top = np.array([2.0, 3.0]), np.array([-1.0, 3.0])
    slow, fast = (noise.kramers_time(b, 0.1, low, top) for b in (0.5, 0.3))
    assert slow / fast == pytest.approx(np.exp(2))
    assert noise.kramers_time(0, 1, [1.0], [-1.0]) == pytest.approx(2 * np.pi)
    flat = noise.kramers_time(0.5, 0.1, low, np.array([-1.0, 12.0]))
    assert flat / slow == pytest.approx(2)


def test_local_entropy_of_a_bowl_in_the_plane(bowl):
    found = float(smoothed_losses(bowl, torch.zeros(1, 2).double(), 0.3, 0.5, n_samples=20_000))
    expected = 0.25 * np.log([1 + 0.09 / 0.5, 1 + 0.36 / 0.5]).sum()
    assert found == pytest.approx(expected, rel=2e-2)


def test_a_sharp_mean_for_one_parameter_is_right(two_wells):
    theta, T = torch.zeros(1, 1, dtype=torch.float64), 0.001
    x = np.linspace(-8, 8, 400_001)
    exact = -T * special.logsumexp(-(x**2) / 2 - (x**2 - 1) ** 2 / T)
    exact += T * special.logsumexp(-(x**2) / 2)
    assert float(smoothed_losses(two_wells, theta, 1.0, T)) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    "until",
    [
        lambda theta: (theta[:, 0] > 0).long(),
        lambda theta: True,
        lambda theta: theta > 0,
        lambda theta: [False, False],
    ],
)
def test_until_gives_a_flag_for_each_run(until, two_wells):
    with pytest.raises(TypeError, match=r"a tensor \(2,\) of torch.bool is needed"):
        cloud(two_wells, torch.zeros(2, 1, dtype=torch.float64), 0.1, 0.01, 5, until=until)


def test_until_cannot_move_a_run(bowl):
    theta = torch.ones(2, 2, dtype=torch.float64)
    found = cloud(bowl, theta, 0, 0.1, 2, until=lambda v: v.zero_()[:, 0] > 1)
    assert torch.equal(found.thetas, cloud(bowl, theta, 0, 0.1, 2).thetas)


def test_large_seeds_are_told_apart(two_wells):
    theta = torch.zeros(1, 1, dtype=torch.float64)
    ends = {float(cloud(two_wells, theta, 1, 0.01, 3, seed=2**63 - k).thetas) for k in (1, 2, 3)}
    assert len(ends) == 3


BAD = {
    "temperature is -1": lambda task, theta: cloud(task, theta, -1, 0.1, 1),
    "lr is 0": lambda task, theta: cloud(task, theta, 1, 0, 1),
    "n_steps is -1": lambda task, theta: cloud(task, theta, 1, 0.1, -1),
    "at is 5": lambda task, theta: cloud(task, theta, 1, 0.1, 4, at=[5]),
    "run is not finite": lambda task, theta: cloud(task, theta + 9, 1, 10.0, 40),
    "thetas": lambda task, theta: cloud(task, theta[:, :0], 1, 0.1, 1),
    "width is -1": lambda task, theta: smoothed_losses(task, theta, -1),
    "temperature is 0": lambda task, theta: smoothed_losses(task, theta, 1, 0),
    "potential": lambda task, theta: noise.stationary_density([[1.0]], 0.1, 1),
    "step is 0": lambda task, theta: noise.stationary_density([1.0, 2.0], 0, 1),
    "density": lambda task, theta: noise.fokker_planck([1.0, 2.0], 1, 1, [1.0], [0]),
    "a time is -1": lambda task, theta: noise.fokker_planck([1.0, 2.0], 1, 1, [1.0, 0], [-1]),
    "start is 3": lambda task, theta: noise.mean_arrival_time([0.0, 1, 2, 3], 1, 1, 3, 2),
    "seed is 9223372036854775808": lambda task, theta: cloud(task, theta, 1, 0.1, 1, seed=2**63),
    "thetas has 0 rows": lambda task, theta: cloud(task, theta[:0], 1, 0.1, 1),
    "temperature": lambda task, theta: cloud(task, theta, torch.ones(3), 0.1, 1),
    "temperature is inf": lambda task, theta: cloud(task, theta, np.inf, 0.1, 1),
    "rests on": lambda task, theta: smoothed_losses(dss.quad(), dss.quad().init(1), 1.0, 1e-3),
    "density (2, 1)": lambda task, theta: noise.free_energy([[1.0], [1]], [1.0, 2.0], 1, 1),
    "density (2,)": lambda task, theta: noise.free_energy([-1.0, 1], [1.0, 2.0], 1, 1),
    "the grid begins": lambda task, theta: noise.mean_arrival_time([0.0, 1, 2], 1, 1, 0, 2),
    "no finite number": lambda task, theta: noise.kramers_time(1, 1e-3, [1.0], [-1.0]),
    "low is": lambda task, theta: noise.kramers_time(1, 1, [-1.0], [-1.0]),
    "top is": lambda task, theta: noise.kramers_time(1, 1, [1.0], [1.0]),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_input_is_refused(said, two_wells):
    with pytest.raises(ValueError, match=re.escape(said)):
        BAD[said](two_wells, torch.zeros(2, 1, dtype=torch.float64))
