"""The algorithm one network at a time, and the same for many pairs: one and the same."""

import inspect
import re

import pytest
import torch

import dss
from dss import recursion, sampling
from dss.descent import Training

L0, TRAINING = 0.003, {"lr": 1e-2, "max_steps": 600, "patience": 200}


def test_one_by_one_it_finds_the_same_strings(quad64, quad_pairs):
    """t* is on the grid, as the recursion has it; at depth 2 some pairs fail."""
    pairs = quad_pairs.theta_1[:8], quad_pairs.theta_2[:8]
    options = TRAINING | {"max_depth": 2}
    strings = dss.find_strings(quad64, *pairs, L0, t_star="grid", **options)
    for string, theta_1, theta_2 in zip(strings, *pairs, strict=True):
        beads, connected = recursion.find_string(quad64, theta_1, theta_2, L0, **options)
        assert connected == string.connected
        if connected and beads:
            expected = string.thetas[1:-1]
            torch.testing.assert_close(torch.stack(beads), expected, rtol=1e-6, atol=1e-7)
    assert {string.connected for string in strings} == {True, False}, "both kinds are compared"
    assert sum(string.n_beads for string in strings if string.connected) > 4


def test_one_segment_has_the_same_maximum(quad64, quad_pairs):
    for theta_1, theta_2 in zip(quad_pairs.theta_1[:8], quad_pairs.theta_2[:8], strict=True):
        t_star, gamma_max = recursion.measure_segment(quad64, theta_1, theta_2)
        assert t_star == float(dss.t_star(quad64, theta_1, theta_2, rule="grid"))
        ends = torch.stack([theta_1, theta_2])
        assert gamma_max == pytest.approx(dss.Gamma_tilde(quad64, ends), rel=1e-12)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "sgd"])
def test_one_descent_takes_the_same_steps(quad64, seeded, optimizer):
    start = quad64.init(3, seeded(4))
    training = {"optimizer": optimizer, "lr": 1e-2, "max_steps": 300, "patience": 100}
    together = dss.train_to(quad64, start, 0.02, **training)
    for i in range(3):
        theta, reached, steps = recursion.train_to(quad64, start[i], 0.02, **training)
        assert (reached, steps) == (bool(together.reached[i]), int(together.steps[i]))
        torch.testing.assert_close(theta, together.thetas[i], rtol=1e-6, atol=1e-7)


def test_its_defaults_are_those_of_dss():
    shown = inspect.signature(recursion.train_to).parameters
    for name in ("optimizer", "lr", "max_steps", "patience"):
        assert shown[name].default == getattr(Training(), name)
    asked = inspect.signature(recursion.find_string).parameters
    of_dss = {name: p.default for name, p in inspect.signature(dss.find_strings).parameters.items()}
    of_dss |= sampling.DEFAULTS["paper"]
    for name in ("alpha", "max_depth", "n_t"):
        assert asked[name].default == of_dss[name]


def test_a_descent_stalls_at_the_same_step(quad64, seeded):
    start = quad64.init(4, seeded(2))
    training = {"optimizer": "sgd", "lr": 1e-5, "max_steps": 50, "patience": 7}
    together = dss.train_to(quad64, start, 1e-6, **training)
    assert "stalled" in together.status
    for i in range(4):
        _, reached, steps = recursion.train_to(quad64, start[i], 1e-6, **training)
        assert (reached, steps) == (False, int(together.steps[i]))


def test_a_landscape_has_no_module_to_recurse_on(ring, point):
    with pytest.raises(ValueError, match="ring is an explicit function of theta; use dss.find"):
        recursion.find_string(ring, point(1, 0), point(-1, 0), 0.3)


STEPS = {2: "measure_segments", 3: "train_beads", 4: "test_segments", 5: "halve_segments"}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_leads_to_its_function_for_many_pairs(step):
    comment = rf"# step {step}, {STEPS[step]}\b"
    assert len(re.findall(comment, inspect.getsource(recursion.find_string))) == 1
    assert inspect.getdoc(getattr(sampling, STEPS[step])).startswith(f"Step {step}: ")


def test_it_can_be_read_in_a_few_minutes():
    lines = [line for line in inspect.getsource(recursion).splitlines() if line.strip()]
    assert len(lines) <= 95
    named = [name for name in vars(recursion) if inspect.isfunction(vars(recursion)[name])]
    own = [name for name in named if getattr(recursion, name).__module__ == "dss.recursion"]
    assert own == ["train_to", "measure_segment", "find_string", "module_of"]
