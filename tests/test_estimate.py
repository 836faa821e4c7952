"""What a search takes, said before it runs; and refused where memory cannot hold a bead."""

import re
from dataclasses import asdict, replace

import pytest
import torch

import dss


@pytest.fixture(scope="module")
def digits():
    """An MLP on images; its evaluation set is small."""
    return dss.digits("mlp", n_eval=100)


@pytest.mark.parametrize("method, copies", [("paper", 9), ("averaged", 14)])
def test_counts_are_exact(digits, method, copies):
    found = digits.estimate(3, n_t=9, method=method, max_steps=50, batch_size=10)
    of_network = digits.n_params * 4 / 2**20
    assert (found.n_params, found.n_pairs, found.n_beads) == (digits.n_params, 3, None)
    assert found.networks == pytest.approx(6 * of_network)
    assert found.training == pytest.approx(3 * copies * of_network)
    assert found.activations == pytest.approx(3 * 10 * digits.budget.n_activations * 4 / 2**20)
    assert (found.first_passes, found.most_gradients) == (27, 150)
    assert 0 < found.seconds_per_evaluation < 1 and 0 < found.seconds_per_gradient < 1
    assert found.first_seconds == pytest.approx(27 * found.seconds_per_evaluation)


def test_a_batch_is_the_tasks_own_or_the_whole_sample(digits, quad64, ring):
    sizes = {"batch_size": 10_000}, {}, {"batch_size": 7}
    n = len(digits.splits["train"][0])
    samples = [v.activations / digits.budget.n_activations for v in map(_of(digits), sizes)]
    assert [round(s * 2**20 / 4) for s in samples] == [n, digits.batch_size or n, 7]
    whole = quad64.estimate().activations * 2**20 / 8 / quad64.budget.n_activations
    assert whole == len(quad64.splits["train"][0])
    assert ring.estimate().n_params == 2


def _of(task):
    return lambda settings: task.estimate(**settings)


def test_groups_are_those_that_memory_holds(digits):
    few = digits.to(memory=2 * 9 * digits.n_params * 4 / 2**20)
    assert few.estimate(100).training == pytest.approx(few.memory)


def test_beads_of_the_first_level_are_those_that_a_search_trains(quad64, quad_pairs):
    ends = quad_pairs.theta_1.clone(), quad_pairs.theta_2.clone()
    ends[0][:2] = quad64.init(2)  # above L0: not searched
    ends[1][2] = ends[0][2]  # a straight line that is low
    L0 = torch.linspace(0.003, 0.05, len(ends[0]))
    found = quad64.estimate(theta_1=ends[0], theta_2=ends[1], L0=L0, max_steps=10)
    strings = dss.find_strings(quad64, *ends, **quad_pairs.search | {"L0": L0, "max_depth": 1})
    traces = [string.trace for string in strings if len(string.trace) > 1]
    n_trained = sum(trace[1]["beads_trained"] for trace in traces)
    assert found.n_beads == n_trained < len(strings) - 2
    assert found.most_gradients == 10 * n_trained
    assert found.n_pairs == len(strings)


def test_it_reads_in_four_lines(digits):
    text = str(digits.estimate(2))
    assert [line.split()[0] for line in text.split("\n")] == ["networks", "memory", "time", "first"]
    assert f"{digits.n_params:,} parameters, 2 pairs" in text
    assert "at most 40,000 gradients" in text


def test_it_draws_nothing_from_the_caller(digits):
    before = torch.random.get_rng_state()
    digits.estimate()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_search_with_progress_says_it_first(quad64, quad_pairs, capsys):
    ends = quad_pairs.theta_1[:2], quad_pairs.theta_2[:2]
    dss.find_strings(quad64, *ends, **quad_pairs.search, progress=True)
    text = capsys.readouterr().err
    assert text.index("33 parameters, 2 pairs") < text.index("level 0 of 6")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"n_pairs": 0}, ValueError, "n_pairs is 0"),
        ({"n_t": 2}, ValueError, "n_t is 2"),
        ({"method": "other"}, ValueError, "unknown method 'other'"),
        ({"alpha": 0.9}, TypeError, "unknown argument 'alpha'"),
        ({"L0": 0.1}, ValueError, "theta_1 is None; theta_1, theta_2, L0 go together"),
    ],
)
def test_what_it_cannot_be_asked(digits, options, error, message):
    with pytest.raises(error, match=message):
        digits.estimate(**options)


CALLS = {
    "find_strings": lambda task, ends, **o: dss.find_strings(task, *ends, 9.0, **o),
    "study": lambda task, ends, **o: dss.study(task, [9.0], 1, **o),
    "estimate": lambda task, ends, **o: task.estimate(**o),
    "train_endpoints": lambda task, ends, **o: dss.train_endpoints(task, 1, [9.0], **o),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_bead_that_memory_cannot_hold_is_refused_before_anything_runs(digits, monkeypatch, call):
    ends = digits.init(2)[:, None]
    large = replace(digits, budget=replace(digits.budget, n_activations=2**40))
    for name in ("losses", "gradients", "init"):
        monkeypatch.setattr(dss.Task, name, None)
    GiB = re.escape(f"{16 * 2**40 * 4 / 2 / 2**30:.3g}")
    with pytest.raises(ValueError, match=f"{GiB} GiB .*16 samples; .* free on cpu.*batch_size"):
        CALLS[call](large, ends, batch_size=16)


def test_vectors_that_memory_cannot_hold_are_refused_by_name(digits, monkeypatch):
    needed = 14 * digits.n_params * 4
    monkeypatch.setattr("dss.networks.memory.free_memory", lambda device: needed)
    digits.estimate(method="paper", batch_size=1)
    with pytest.raises(ValueError, match=f"14 vectors of {digits.n_params:,} parameters"):
        digits.estimate(method="averaged", batch_size=1)


def test_a_small_budget_is_no_reason_to_refuse(digits):
    small = digits.to(memory=1e-6)
    ends = small.init(2)[:, None]
    assert dss.find_strings(small, *ends, 9.0)[0].connected
    assert asdict(small.estimate())["training"] > 1e-6
