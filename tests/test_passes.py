"""Passes between many networks: the merge tree, and what is known of every pair."""

import itertools
import os

import numpy as np
import pytest
import torch
from torch import nn

import dss
from dss import sampling
from dss.geometry import pass_matrix, passes
from dss.problems import PROBLEMS


def wells(theta):
    """Minima of height 0 at the whole numbers; the pass behind k is about 1 + (k + 1/2) / 10."""
    x = theta[..., 0]
    return (1 - torch.cos(2 * torch.pi * x)) / 2 * (1 + x / 10)


@pytest.fixture(scope="module")
def line():
    task = dss.landscape(wells, 1)
    return task, torch.arange(5, dtype=torch.float64)[:, None]


@pytest.fixture(scope="module")
def networks():
    task = dss.quad()
    ends = dss.train_endpoints(task, 8, [0.02], seed(3), **task.train_settings)
    return task, ends.thetas[0]


def seed(k):
    return torch.Generator().manual_seed(k)


def test_the_merge_tree_of_a_line_is_exact(line):
    task, thetas = line
    found = pass_matrix(task, thetas, [1.5, 1.2, 1.1], n_t=401, max_depth=1, max_steps=20)
    x = torch.linspace(0, 4, 100_001, dtype=torch.float64)
    tops = [float(wells(x[(x >= k) & (x <= k + 1), None]).max()) for k in range(4)]
    # Passes rise to the right: of two networks, the one to the left of the other decides.
    exact = [[0 if i == j else tops[max(i, j) - 1] for j in range(5)] for i in range(5)]
    assert found.heights == pytest.approx(np.array(exact), rel=2e-3)
    assert found.linkage[:, 2] == pytest.approx(np.array(tops), rel=2e-3)
    assert sorted(found.own[edge] for edge in found.edges) == pytest.approx(tops, rel=2e-3)
    between = [0.5, *((a + b) / 2 for a, b in itertools.pairwise(tops)), 2]
    assert [found.n_components(L0) for L0 in between] == [5, 4, 3, 2, 1]
    assert found.n_components(-1.0) == 0, "no network is so low"
    deaths = sorted(found.bars()[:, 1])
    assert deaths[:4] == pytest.approx(tops, rel=2e-3) and deaths[4] == np.inf
    assert (found.bars()[:, 0] == found.losses).all()


def test_a_search_that_fails_is_counted_and_says_nothing(line):
    task, thetas = line
    found = pass_matrix(task, thetas, [1.1, 1.5], n_t=101, max_depth=1, max_steps=20)
    high, low = found.searches.to_dict("records")
    assert (high["L0"], low["L0"]) == (1.5, 1.1), "from the highest"
    assert (high["n_pairs"], high["n_known"], high["n_searched"]) == (10, 10, 0)
    assert (low["n_known"], low["n_searched"], low["n_connected"]) == (1, 9, 0)
    assert low["n_joined"] == 0 and low["gradient_steps"] > 0
    assert found.own.max() < 1.5, "the straight line is an upper bound all the same"


def test_a_string_that_is_too_high_is_a_bound_all_the_same():
    def hill(v):
        return ((v**2).sum(-1) - 1) ** 2 + torch.exp(-8 * v[..., 0] ** 2)

    task = dss.landscape(hill, 2)
    thetas = torch.tensor([[1.0, 0.0], [-1.0, 0.1]], dtype=torch.float64)
    options = {"max_depth": 3, "max_steps": 500}
    (string,) = dss.find_strings(task, thetas[:1], thetas[1:], 0.5, **options)
    found = pass_matrix(task, thetas, [0.5], **options)
    line = float(dss.interpolated_loss(task, *thetas).max())
    assert not string.connected and string.Gamma_tilde < line - 0.5
    assert found.own[0, 1] == string.Gamma_tilde
    assert len(found.strings[0, 1].thetas) == len(string.thetas)
    assert found.searches.n_connected.sum() == 0


def test_heights_below_zero_are_heights():
    task = dss.landscape(lambda v: -torch.exp(-(v**2).sum(-1)), 1)
    thetas = torch.tensor([[0.0], [0.3], [0.5]], dtype=torch.float64)
    found = pass_matrix(task, thetas, [0.1], max_depth=0)
    # On a slope the pass between two networks is the higher one.
    assert found.heights == pytest.approx(np.maximum(*np.meshgrid(found.losses, found.losses)))


def test_two_valleys_join_where_the_problem_says():
    for name in ("unit", "two units", "ring"):
        problem = PROBLEMS[name]
        task = problem.task(name)
        ends = problem.ends()
        floor = float(task.losses(ends).max())
        low = max(floor, 0.2)
        found = pass_matrix(task, ends, [2.0, low], max_steps=2000)
        if problem.Gamma is None:
            assert found.heights[0, 1] <= low * (1 + 1e-5) and found.n_components(low) == 1
        else:
            assert found.heights[0, 1] >= problem.Gamma * (1 - 1e-6)
            assert found.n_components(low) == 2


def test_every_height_is_that_of_a_path(networks):
    task, thetas = networks
    found = pass_matrix(task, thetas, [0.1, 0.02], **task.settings)
    n = len(thetas)
    assert (found.own == found.own.T).all() and (found.heights <= found.own).all()
    assert np.allclose(found.own.diagonal(), task.losses(thetas).double(), rtol=0, atol=0)
    assert found.edges == sorted(found.strings) and len(found.strings) == n - 1
    for (i, j), string in found.strings.items():
        assert torch.equal(string.thetas[[0, -1]], thetas[[i, j]])
        measured = dss.Gamma_tilde(task, string.thetas, 33)
        assert measured == pytest.approx(found.own[i, j], rel=1e-5), "on the same grids"
        assert string.connected and string.Gamma_tilde == found.own[i, j] == found.heights[i, j]
    # The best way through others, by brute force.
    best = found.own.copy()
    for k in range(n):
        best = np.minimum(best, np.maximum(best[:, [k]], best[[k], :]))
    off = ~np.eye(n, dtype=bool)
    assert (found.heights[off] == best[off]).all()
    for L0 in np.unique(found.own):
        joined = (found.own <= L0) & (found.losses <= L0)
        n_pieces, _ = connected_components(joined & (found.losses <= L0)[:, None])
        assert found.n_components(L0) == n_pieces - (found.losses > L0).sum()


def connected_components(joined):
    from scipy.sparse.csgraph import connected_components

    return connected_components(joined)


def test_batches_do_not_matter_and_others_may_join(networks):
    task, thetas = networks
    whole, parts = (
        pass_matrix(task, thetas, [0.05, 0.02], pairs_at_once=k, **task.settings) for k in (28, 5)
    )
    assert np.allclose(whole.own, parts.own, rtol=1e-6)
    fewer = pass_matrix(task, thetas, [0.05, 0.02], through_others=True, **task.settings)
    assert fewer.searches.n_searched.sum() <= whole.searches.n_searched.sum()
    assert (fewer.heights <= np.maximum(whole.heights, 0.02 * (1 + 1e-5))).all()


def test_a_killed_run_goes_on_where_it_was(networks, tmp_path, monkeypatch):
    task, thetas = networks
    arguments = (task, thetas, [0.05, 0.02])
    options = task.settings | {"pairs_at_once": 6}
    whole = pass_matrix(*arguments, **options)
    calls, find = [], sampling.find_strings

    def dying(*given, **more):
        calls.append(given[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return find(*given, **more)

    file = tmp_path / "passes.safetensors"
    monkeypatch.setattr(passes, "find_strings", dying)
    with pytest.raises(KeyboardInterrupt):
        pass_matrix(*arguments, checkpoint=file, **options)
    resumed = pass_matrix(*arguments, checkpoint=file, **options)
    assert (resumed.own == whole.own).all() and resumed.searches.equals(whole.searches)
    for edge, string in whole.strings.items():
        assert torch.equal(resumed.strings[edge].thetas, string.thetas)
    n_calls = len(calls)
    again = pass_matrix(*arguments, checkpoint=file, **options)
    assert len(calls) == n_calls and (again.own == whole.own).all(), "nothing is searched again"
    with pytest.raises(ValueError, match="of another search: L0 is"):
        pass_matrix(task, thetas, [0.05, 0.03], checkpoint=file, **options)
    file.write_bytes(os.urandom(200))
    with pytest.raises(ValueError, match="passes.safetensors"):
        pass_matrix(*arguments, checkpoint=file, **options)


def test_heights_can_be_proved(networks):
    task, thetas = networks
    found = pass_matrix(task, thetas[:4], [0.02], **task.settings)
    proved = found.certified(task)
    assert (proved.heights >= found.heights * (1 - 1e-5)).all(), "grids see less than proofs"
    assert np.isfinite(proved.heights).all() and proved.heights == pytest.approx(
        found.heights, rel=0.05
    )
    assert proved.edges == found.edges and np.isinf(proved.own).any()


def test_networks_and_files_are_taken(tmp_path, seeded):
    x = torch.randn(30, 3, generator=seeded())
    nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(3)]
    task = dss.Task.from_module(nets[0], "mse", (x, x[:, :1]), (x, x[:, :1]))
    torch.save(nets[2].state_dict(), tmp_path / "c.pt")
    found = pass_matrix(task, [nets[0], nets[1].state_dict(), tmp_path / "c.pt"], 10, max_depth=0)
    assert found.losses == pytest.approx(
        [float(nn.functional.mse_loss(net(x), x[:, :1]).detach()) for net in nets]
    )


def test_a_loss_without_a_value_is_no_path(seeded):
    def holed(theta):
        x = theta[..., 0]
        return torch.where((x > 0.4) & (x < 0.6), torch.nan, x**2)

    task = dss.landscape(holed, 1)
    thetas = torch.tensor([[0.0], [1.0], [0.9]], dtype=torch.float64)
    found = pass_matrix(task, thetas, 2.0, max_depth=0)
    assert np.isinf(found.heights[0, 1]) and found.n_components(2.0) == 2
    assert np.isfinite(found.heights[1, 2]) and (found.linkage[-1, 2]) == np.inf


REFUSED = {
    "one network": (lambda v: {"thetas": v[:1]}, ValueError, "1 networks; at least two"),
    "no networks": (lambda v: {"thetas": [1, 2]}, TypeError, "thetas is"),
    "another shape": (lambda v: {"thetas": v[:, :3]}, ValueError, "thetas has shape"),
    "NaN": (lambda v: {"thetas": v * torch.nan}, ValueError, "thetas"),
    "above": (lambda v: {"L0": 1e-4}, ValueError, "network 0 has loss .*, above the highest"),
    "no threshold": (lambda v: {"L0": []}, ValueError, "L0 has shape"),
    "negative": (lambda v: {"L0": [-1.0]}, ValueError, "L0 is"),
    "an option": (lambda v: {"depth": 3}, TypeError, "depth"),
    "a bead": (lambda v: {"first_bead": v}, ValueError, "first_bead is"),
    "no whole": (lambda v: {"pairs_at_once": 0}, ValueError, "pairs_at_once is 0"),
    "no flag": (lambda v: {"through_others": 1}, TypeError, "through_others is 1"),
    "grid": (lambda v: {"n_t": 2}, ValueError, "n_t is 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name, networks, monkeypatch):
    task, thetas = networks
    change, error, said = REFUSED[name]
    monkeypatch.setattr(passes, "find_strings", lambda *a, **k: pytest.fail("nothing is searched"))
    given = {"thetas": thetas, "L0": 0.02} | change(thetas)
    with pytest.raises(error, match=said):
        pass_matrix(task, given.pop("thetas"), given.pop("L0"), **given)


def test_a_run_goes_on_though_other_memory_is_free(line, tmp_path, monkeypatch):
    task, thetas = line
    file, fit, sizes, find = tmp_path / "passes", {"rows": 2}, [], sampling.find_strings
    monkeypatch.setattr(type(task.budget), "rows_that_fit", lambda *_: fit["rows"])
    arguments = task, thetas, [1.5, 1.1]
    options = {"n_t": 33, "max_depth": 1, "max_steps": 5}
    whole = pass_matrix(*arguments, **options)

    def dying(*given, **more):
        sizes.append(len(given[1]))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return find(*given, **more)

    monkeypatch.setattr(passes, "find_strings", dying)
    with pytest.raises(KeyboardInterrupt):
        pass_matrix(*arguments, checkpoint=file, **options)
    fit["rows"] = 7
    found = pass_matrix(*arguments, checkpoint=file, **options)
    assert max(sizes) == 2 and (found.own == whole.own).all(), "the batches that it began with"
