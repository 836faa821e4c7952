"""Shared tasks with a known answer, trained networks, and the plain one-network-at-a-time loss."""

import copy
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from browser import browser, page, site  # noqa: F401
from classes import released  # noqa: F401
from torch.nn.utils import vector_to_parameters

import dss
from dss import sampling
from dss.networks import losses
from dss.problems import PROBLEMS
from dss.runs import grid

if not __debug__:
    raise pytest.UsageError("assertions are off (-O, PYTHONOPTIMIZE): tests would check little")
torch.set_num_threads(1)
hypothesis.settings.register_profile("dss", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("dss")


def pytest_xdist_auto_num_workers():
    """One process more than cores: while one waits for a kernel or a browser, another works."""
    return grid.n_cores() + 1


def pytest_collection_modifyitems(items):
    """What takes long is begun first: notebooks, then files with slow tests.

    pytest-xdist hands out whole files (`--dist loadfile`), in this order.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.suffix != ".ipynb", item.path not in slow))


@pytest.fixture(scope="session")
def seeded():
    """A CPU generator with a given seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def point():
    """theta from its values, in double precision."""
    return lambda *values: torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="session")
def unit():
    """One linear unit y = a w x with target x: Gamma between its two valleys is exactly 1."""
    return PROBLEMS["unit"].task("linear unit")


@pytest.fixture(scope="session")
def ring():
    """Minima on the unit circle; 1 at the origin."""
    return PROBLEMS["ring"].task("ring")


@pytest.fixture(scope="session")
def plateau():
    """Two valleys, at (1, 0) and (-1, 0), on a plateau where the gradient is exactly 0."""
    return PROBLEMS["plateau"].task("plateau")


@pytest.fixture(scope="session")
def linear():
    """Linear regression, which is convex."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 0.3
    module = torch.nn.Linear(3, 1, dtype=torch.float64)
    return dss.Task.from_module(module, "mse", (x[:20], y[:20]), (x[20:], y[20:]))


@pytest.fixture(scope="session")
def quad64():
    """QUAD in double precision."""
    return dss.quad().to(dtype=torch.float64)


@pytest.fixture(scope="session")
def quad_pairs(quad64):
    """32 pairs of eight networks at L0 = .003, and keyword arguments that search them fast."""
    training = {"lr": 1e-2, "max_steps": 600, "patience": 200}
    thetas = dss.train_endpoints(quad64, 8, [0.003], **training).thetas[0]
    first, second = torch.triu_indices(8, 8, 1)
    first, second = torch.cat([first, second[:4]]), torch.cat([second, first[:4]])
    search = training | {"max_depth": 6, "L0": 0.003}
    return SimpleNamespace(theta_1=thetas[first], theta_2=thetas[second], search=search)


@pytest.fixture(scope="session")
def digits64():
    """The digits with an MLP, in double precision, 100 digits in the evaluation set."""
    return dss.digits(n_eval=100).to(dtype=torch.float64)


@pytest.fixture(scope="session")
def plain_loss():
    """Loss of one network as a plain module with loaded parameters; no vmap, no stacking."""

    def loss_of(task, theta, split="test", name=None):
        module = copy.deepcopy(task.module)
        vector_to_parameters(theta, module.parameters())
        x, y = task.splits[split]
        with torch.no_grad():
            return losses.LOSSES[name or task.metric](module(x), y)

    return loss_of


@pytest.fixture
def beads_given_to_training(monkeypatch):
    """Every stack of beads as it went into training, and what came out."""
    seen = []

    def spy(task, thetas, *args, **kwargs):
        seen.append((thetas.clone(), trained := dss.train_to(task, thetas, *args, **kwargs)))
        return trained

    monkeypatch.setattr(sampling, "train_to", spy)
    return seen
