"""train_to: a stack of descents, each of which is one plain torch.optim loop."""

import math

import pytest
import torch
from torch.func import functional_call

import dss
from dss import train
from dss.task import Task
from dss.theta import shapes_of


@pytest.fixture
def batches_seen(monkeypatch):
    """Indices of every training batch, in order."""
    seen, gradients = [], Task.gradients

    def spy(self, thetas, batch=slice(None), *rest):
        seen.append(batch)
        return gradients(self, thetas, batch, *rest)

    monkeypatch.setattr(Task, "gradients", spy)
    return seen


def plain_descent(task, theta, target, optimizer, lr, max_steps, plain_loss):
    """One network with torch.optim, without a stack: its last theta and the steps it took."""
    x, y = task.splits["train"]
    theta = theta.clone().requires_grad_()
    descent = optimizer([theta], lr=lr)
    for step in range(max_steps + 1):
        if plain_loss(task, theta.detach()) <= target or step == max_steps:
            return theta.detach(), step
        descent.zero_grad()
        parameters = dss.theta.unflatten(theta, shapes_of(task.module))
        torch.nn.functional.mse_loss(functional_call(task.module, parameters, x), y).backward()
        descent.step()


@pytest.mark.parametrize(
    "name, optimizer, lr",
    [
        ("rmsprop", torch.optim.RMSprop, 1e-2),
        ("adam", torch.optim.Adam, 1e-2),
        ("sgd", torch.optim.SGD, 1e-1),
    ],
)
def test_a_stack_equals_single_torch_optim_loops(quad64, plain_loss, seeded, name, optimizer, lr):
    start = quad64.init(6, seeded(4))
    target = torch.tensor([0.06, 0.03, 1e-9, 10.0, 0.02, 0.04], dtype=torch.float64)
    trained = dss.train_to(quad64, start, target, optimizer=name, lr=lr, max_steps=150)
    for i in range(6):
        theta, steps = plain_descent(quad64, start[i], target[i], optimizer, lr, 150, plain_loss)
        assert int(trained.steps[i]) == steps
        torch.testing.assert_close(trained.thetas[i], theta, rtol=1e-8, atol=1e-10)
    assert trained.steps[3] == 0 and torch.equal(trained.thetas[3], start[3])
    assert trained.status[2:4] == ["budget spent", "reached"]
    assert len(set(trained.steps.tolist())) > 3


@pytest.mark.parametrize("batch_size, check_every", [(None, None), (None, 7), (16, None), (16, 3)])
def test_reached_is_the_truth_on_the_evaluation_set(
    quad64, plain_loss, seeded, batch_size, check_every
):
    trained = dss.train_to(
        quad64,
        quad64.init(16, seeded(5)),
        0.01,
        lr=1e-2,
        batch_size=batch_size,
        max_steps=150,
        check_every=check_every,
    )
    assert 0 < trained.reached.sum() < 16
    for i in range(16):
        loss = float(plain_loss(quad64, trained.thetas[i]))
        assert float(trained.losses[i]) == pytest.approx(loss, rel=1e-12)
        assert bool(trained.reached[i]) == (loss <= 0.01) == (trained.status[i] == "reached")
        if trained.status[i] == "budget spent":
            assert trained.steps[i] == 150


def test_the_metric_decides_and_the_loss_is_descended(seeded):
    task = dss.digits(metric="error", n_eval=200)
    trained = dss.train_to(task, task.init(2, seeded()), 0.15, **task.train_settings)
    assert trained.reached.all()
    assert (task.losses(trained.thetas) <= 0.15).all()


def test_starting_points_are_left_alone(quad64, seeded):
    start = quad64.init(2, seeded())
    before = start.clone()
    dss.train_to(quad64, start, 1e-9, max_steps=3)
    assert torch.equal(start, before)


def test_nan_is_marked_and_does_not_touch_its_company(seeded):
    task = dss.landscape(lambda theta: theta[..., 0] ** 4, 1)
    start = torch.tensor([[3.0], [0.1], [1e-3]], dtype=torch.float64)
    trained = dss.train_to(task, start, 1e-6, optimizer="sgd", lr=1.0, max_steps=5_000)
    assert trained.status == ["not finite", "reached", "reached"]
    assert trained.reached.tolist() == [False, True, True]
    assert not math.isfinite(float(trained.losses[0]))
    alone = dss.train_to(task, start[1:2], 1e-6, optimizer="sgd", lr=1.0, max_steps=5_000)
    assert torch.equal(alone.thetas[0], trained.thetas[1])
    assert alone.steps[0] == trained.steps[1] > 0


def test_a_network_that_starts_at_nan_loss_is_marked():
    task = dss.landscape(lambda theta: theta[..., 0].log(), 1)
    trained = dss.train_to(task, torch.tensor([[-1.0]], dtype=torch.float64), 0.1)
    assert (trained.status, trained.reached.tolist()) == (["not finite"], [False])


def test_a_stall_is_marked_after_patience(plateau, point):
    start = torch.stack([point(0, 0.9), point(1, 0.05)])
    trained = dss.train_to(plateau, start, 1e-3, patience=37)
    assert trained.status == ["stalled", "reached"]
    assert trained.reached.tolist() == [False, True]
    assert trained.steps[0] == 37
    assert float(trained.losses[0]) == 1


@pytest.mark.parametrize("max_steps", [0, 1, 7])
@pytest.mark.parametrize("check_every", [1, 3])
def test_the_budget_is_spent_to_the_step(quad64, seeded, max_steps, check_every):
    start = quad64.init(2, seeded())
    trained = dss.train_to(quad64, start, 1e-9, max_steps=max_steps, check_every=check_every)
    assert trained.status == ["budget spent"] * 2
    assert trained.steps.tolist() == [max_steps] * 2


def test_one_data_order_for_all_networks(quad64, seeded, batches_seen):
    start = quad64.init(3, seeded())
    for thetas, seed in ((start, 1), (start[1:2], 1), (start, 1), (start, 2)):
        dss.train_to(quad64, thetas, 1e-9, batch_size=48, max_steps=6, generator=seeded(seed))
    runs = [[b.tolist() for b in batches_seen[6 * r : 6 * r + 6]] for r in range(4)]
    assert runs[0] == runs[1] == runs[2] != runs[3]
    for first, second in zip(runs[0][::2], runs[0][1::2], strict=True):
        assert len(set(first + second)) == 96
    assert runs[0][:2] != runs[0][2:4]


def test_whole_batches_by_default(quad64, seeded, batches_seen):
    dss.train_to(quad64, quad64.init(1, seeded()), 1e-9, max_steps=2)
    assert batches_seen == [slice(None)] * 2


def test_train_endpoints_counts_what_it_drew(quad64, seeded, monkeypatch):
    rounds = []

    def spy(task, thetas, target, **kwargs):
        trained = dss.train_to(task, thetas, target, **kwargs)
        rounds.append((target.tolist(), trained.reached.tolist()))
        return trained

    monkeypatch.setattr(train, "train_to", spy)
    L0 = [0.02, 0.002]
    found = dss.train_endpoints(quad64, 5, L0, seeded(1), lr=1e-2, max_steps=400, patience=100)
    assert found.thetas.shape == (2, 5, 33) and found.steps.shape == (2, 5)
    for k, threshold in enumerate(L0):
        assert (quad64.losses(found.thetas[k]) <= threshold).all()
        outcomes = [
            ok
            for targets, reached in rounds
            for target, ok in zip(targets, reached, strict=True)
            if target == threshold
        ]
        assert int(found.n_drawn[k]) == len(outcomes)
        assert int(found.n_discarded[k]) == outcomes.count(False)
    assert found.n_discarded.sum() > 0
    assert len(found.thetas.flatten(0, 1).unique(dim=0)) == 10


def test_train_endpoints_gives_up_and_says_how_far_it_came(quad64):
    with pytest.raises(RuntimeError, match="0 of 60 networks reached mse 1e-09; 2 are needed"):
        dss.train_endpoints(quad64, 2, [1e-9], max_steps=0)


def test_where_fewer_are_enough_initial_values_stand_in(quad64, seeded):
    arguments = {"lr": 1e-2, "max_steps": 400, "patience": 100}
    alone = dss.train_endpoints(quad64, 3, [0.01], seeded(1), fewer=True, **arguments)
    usual = dss.train_endpoints(quad64, 3, [0.01], seeded(1), **arguments)
    assert torch.equal(alone.thetas, usual.thetas)
    found = dss.train_endpoints(quad64, 3, [1e-9], seeded(1), fewer=True, max_steps=2)
    assert found.thetas.shape == (1, 3, quad64.n_params)
    assert (quad64.losses(found.thetas[0]) > 1e-9).all()
    assert found.n_drawn == found.n_discarded and found.steps.tolist() == [[0, 0, 0]]
    _, table = dss.study(quad64, [10.0, 1e-9], 2, seeded(), fewer=True, max_steps=2)
    assert table.status.tolist() == ["connected"] * 2 + ["endpoint above L0"] * 2


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"optimizer": "lion"}, ValueError, "'lion'; known: rmsprop, adam, sgd"),
        ({"lr": 0.0}, ValueError, "lr is 0.0"),
        ({"lr": math.nan}, ValueError, "lr is nan"),
        ({"max_steps": -1}, ValueError, "max_steps is -1"),
        ({"patience": 0}, ValueError, "patience is 0"),
        ({"check_every": 0}, ValueError, "check_every is 0"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"target": 0.0}, ValueError, "target is 0.0"),
        ({"target": torch.tensor([0.1, 0.1, 0.1])}, ValueError, "target.*3"),
    ],
)
def test_bad_arguments(quad64, seeded, arguments, error, message):
    with pytest.raises(error, match=message):
        dss.train_to(quad64, quad64.init(2, seeded()), **({"target": 0.1} | arguments))
