"""Certificates: what is proved, refuted and undecided, and what a second checker makes of them."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import dss
from dss.files import save_tensors
from dss.proofs.bounds import records_of_layers
from dss.proofs.certify import CERTIFICATE_FORMAT
from dss.proofs.checker import check_certificate


def network(module, x, y, metric="mse"):
    return dss.Task.from_module(module.double(), metric, (x, y), (x, y))


def string_of(task, *thetas, L0):
    """A string as if it had been found, with the Gamma_tilde of its grid."""
    thetas = torch.stack(thetas)
    Gamma_tilde = float(dss.losses_along(task, thetas)[1].max())
    return dss.String(thetas, "connected", L0, 0.9, 1.0, 33, Gamma_tilde)


@pytest.fixture(scope="module")
def saddle():
    """(a w - 1)^2 as a network; from (1, 1) to (-1, -1) it is exactly 1 at the saddle."""
    one = torch.ones(1, 1, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    return network(module, one, one)


@pytest.fixture(scope="module")
def needle():
    """(relu(u + 1) - 2 relu(u) + relu(u - 1))^2 with u = 400 (t - t0): 1 at t0, else 0."""
    t0, k = 0.515, 400.0
    module = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    task = network(module, torch.zeros(1, 1).double(), torch.zeros(1, 1).double())

    def theta(t):
        u = k * (t - t0)
        return torch.tensor([0, 0, 0, u + 1, u, u - 1, 1, -2, 1, 0], dtype=torch.float64)

    return task, theta(0.0), theta(1.0), t0


@pytest.fixture(scope="module")
def found():
    """QUAD strings that connected at L0 = .01."""
    task = dss.quad()
    strings, _ = dss.study(task, [0.01], 6, torch.Generator().manual_seed(5), **task.settings)
    return task, [s for s in strings if s.connected]


@pytest.mark.parametrize("off", [1e-3, 1e-6])
def test_thresholds_just_above_and_below_the_true_maximum(saddle, point, off):
    ends = point(1, 1), point(-1, -1)
    above = dss.certify(saddle, string_of(saddle, *ends, L0=1 + off))
    assert above.proved and above.status == ["proved"] and float(above.upper) <= 1 + off
    below = dss.certify(saddle, string_of(saddle, *ends, L0=1 - off))
    assert below.refuted and float(below.lower) > 1 - off
    assert float(below.t_lower) == pytest.approx(0.5, abs=off**0.5)


def test_at_the_maximum_itself_rounding_leaves_it_undecided(saddle, point):
    certificate = dss.certify(saddle, string_of(saddle, point(1, 1), point(-1, -1), L0=1.0))
    assert certificate.status == ["undecided"] and not (certificate.proved or certificate.refuted)
    assert float(certificate.lower) <= 1 <= float(certificate.upper) <= 1 + 1e-8


def test_a_peak_between_grid_points_is_found(needle):
    task, theta_1, theta_2, t0 = needle
    gamma = dss.interpolated_loss(task, theta_1, theta_2, n_t=101)
    assert float(gamma.max()) == 0
    string = dss.String(torch.stack([theta_1, theta_2]), "connected", 0.5, 0.9, 1.0, 101, 0.0)
    certificate = dss.certify(task, string)
    assert certificate.status == ["refuted"]
    assert abs(float(certificate.t_lower) - t0) < 1 / 400
    (low,) = dss.certify_strings(task, [string], limit=1.001)
    assert low.proved and float(low.upper) >= 1


def test_pieces_cover_each_segment_and_bound_every_point(found, seeded):
    task, strings = found
    for certificate, string in zip(dss.certify_strings(task, strings), strings, strict=True):
        assert certificate.proved and certificate.upper.max() <= 0.01
        t = torch.rand(200, generator=seeded(1), dtype=torch.float64)
        for k in range(len(string.thetas) - 1):
            own = certificate.segment == k
            begin, end = certificate.begin[own], certificate.end[own]
            assert begin[0] == 0 and end[-1] == 1 and torch.equal(begin[1:], end[:-1])
            thetas = dss.interpolate(*string.thetas[k : k + 2].double(), t)
            gamma = task.to(dtype=torch.float64).losses(thetas)
            piece = torch.searchsorted(end, t)
            assert (gamma <= certificate.bound[own][piece]).all()
            assert certificate.upper[k] == certificate.bound[own].max()
            assert certificate.lower[k] <= certificate.upper[k]


def test_a_string_is_the_same_alone_and_in_company(found):
    task, strings = found
    together = dss.certify_strings(task, strings)
    small = task.to(memory=0.5)
    for string, one in zip(strings, together, strict=True):
        for alone in (dss.certify(task, string), dss.certify(small, string)):
            assert alone.status == one.status and torch.equal(alone.begin, one.begin)
            torch.testing.assert_close(alone.bound, one.bound, rtol=1e-9, atol=0)


def test_a_tolerance_narrows_the_bracket_of_gamma_tilde(found):
    task, strings = found
    for tolerance in (1e-2, 1e-4):
        for c, s in zip(
            dss.certify_strings(task, strings, tolerance=tolerance), strings, strict=True
        ):
            lower, upper = c.Gamma_tilde
            assert lower <= upper <= lower * (1 + 2 * tolerance)
            assert lower * (1 - 1e-5) <= max(s.Gamma_tilde, lower) <= upper * (1 + 1e-5)
            assert c.trace[-1]["n_bounded"] == c.n_bounded


def test_a_small_budget_leaves_segments_undecided_with_the_best_bound(found):
    task, strings = found
    (certificate,) = dss.certify_strings(task, strings[:1], limit=0.00999, budget=2)
    assert set(certificate.status) <= {"proved", "undecided", "refuted"}
    assert "undecided" in certificate.status and certificate.n_bounded <= 2 * len(
        certificate.status
    )
    assert torch.isfinite(certificate.upper).all()
    (intervals,) = dss.certify_strings(task, strings[:1], form="interval")
    assert intervals.proved and intervals.n_bounded > dss.certify(task, strings[0]).n_bounded


def test_evaluation_in_parts_gives_the_same_bounds(found):
    task, strings = found
    parts = replace(task, eval_chunk=100)
    for a, b in zip(
        dss.certify_strings(task, strings), dss.certify_strings(parts, strings), strict=True
    ):
        assert a.status == b.status
        torch.testing.assert_close(a.bound, b.bound, rtol=1e-9, atol=0)


def test_error_rates_and_convolutions(seeded):
    task = dss.digits(network="cnn", metric="error", n_eval=60)
    thetas = dss.train_endpoints(task, 2, [0.2], seeded(), **task.train_settings).thetas[0]
    string = dss.find_string(task, *thetas, 0.2, generator=seeded(), **task.settings)
    certificate = dss.certify(task, string, budget=64)
    lower, upper = certificate.Gamma_tilde
    assert string.connected and certificate.metric == "error" and not certificate.refuted
    assert lower <= string.Gamma_tilde <= upper <= 0.5


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"budget": 0}, ["budget is 0", "a whole number >= 1"]),
        ({"budget": None}, ["budget is None", "whole number"]),
        ({"budget": 1.5}, ["budget is 1.5"]),
        ({"limit": 0.0}, ["limit is 0"]),
        ({"limit": float("nan")}, ["limit is nan"]),
        ({"tolerance": 0.0}, ["tolerance is 0"]),
        ({"form": "zonotope"}, ["form", "'zonotope'", "'affine', 'interval'"]),
    ],
)
def test_bad_arguments(found, options, parts):
    task, strings = found
    with pytest.raises((TypeError, ValueError)) as error:
        dss.certify_strings(task, strings, **options)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_task_and_a_string_that_do_not_belong_together(found, saddle, unit):
    task, strings = found
    with pytest.raises(ValueError, match="33.*2|2.*33"):
        dss.certify(saddle, strings[0])
    with pytest.raises(ValueError, match="do not belong together: Gamma_tilde is 0.00"):
        dss.certify(dss.quad("sigmoid"), strings[0])
    with pytest.raises(ValueError, match="linear unit is an explicit function"):
        dss.certify(unit, strings[0])
    with pytest.raises(ValueError, match="known: mse"):
        dss.certify(replace(task, metric_function=lambda output, y: output.mean()), strings[0])


@pytest.fixture(scope="module")
def files(found, tmp_path_factory):
    """A string and its certificate, saved side by side."""
    folder = tmp_path_factory.mktemp("certificates")
    task, strings = found
    string = max(strings, key=lambda s: s.n_beads)
    certificate = dss.certify(task, string, tolerance=0.01)
    string.save(folder / "pair.string")
    certificate.save(folder / "pair.certificate")
    return folder / "pair.certificate", folder / "pair.string", certificate


def test_a_certificate_is_saved_bit_for_bit_and_confirmed(files):
    path, string, certificate = files
    loaded = dss.Certificate.load(path)
    for name, value in vars(certificate).items():
        other = getattr(loaded, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert check_certificate(path) == check_certificate(path, string) == []


def tampered(path, out, **changes):
    """The certificate again, with some fields replaced and a digest that fits."""
    certificate = dss.Certificate.load(path)
    changed = replace(certificate, **{n: f(getattr(certificate, n)) for n, f in changes.items()})
    return changed.save(out)


def times(i, factor):
    def change(values):
        values = values.clone()
        values.view(-1)[i] *= factor
        return values

    return change


TAMPERED = {
    "a missing piece": (
        {n: lambda v: torch.cat([v[:2], v[3:]]) for n in ("segment", "begin", "end", "bound")},
        "leave out or repeat",
    ),
    "a piece that ends too early": ({"end": times(1, 0.9)}, "leave out or repeat"),
    "a changed weight": ({"thetas": times(40, 1.5)}, "is not confirmed"),
    "a lowered bound": ({"bound": times(2, 0.5), "upper": lambda v: v}, "is not confirmed"),
    "a lowered upper end": ({"upper": times(0, 0.9)}, "not the largest of its bounds"),
    "a raised lower end": ({"lower": times(0, 1.5)}, "at t = .* is not confirmed"),
    "a lowered limit": ({"limit": lambda v: v / 2}, "is called proved"),
    "a segment called refuted": ({"status": lambda v: ["refuted", *v[1:]]}, "is called refuted"),
    "an unknown status": ({"status": lambda v: ["fine", *v[1:]]}, "'fine'"),
    "a status too few": ({"status": lambda v: v[1:]}, "states of"),
    "another metric": ({"metric": lambda v: "mae"}, "not confirmed"),
    "an unknown metric": ({"metric": lambda v: "f1"}, "f1"),
    "another network": ({"layers": lambda v: v[:-2]}, "targets y"),
    "layers left out": ({"layers": lambda v: [v[0], v[-1] | {"n_in": 4}]}, "parameters"),
    "a setting unheard of": ({"layers": lambda v: [v[0], v[1] | {"slope": 1}, *v[2:]]}, "settings"),
    "another number of outputs": ({"layers": lambda v: [*v[:-1], v[-1] | {"n_out": 2}]}, "targets"),
    "other targets": ({"y": lambda v: v + 1}, "not confirmed"),
    "targets that broadcast": ({"y": lambda v: v[:, 0]}, "targets y"),
    "fewer targets": ({"y": lambda v: v[:1]}, " x$"),
    "one bound that is no number": ({"bound": lambda v: v.index_fill(0, ONE, torch.nan)}, "NaN"),
    "no number in a sample": ({"x": lambda v: v.index_fill(0, ONE, torch.nan)}, "NaN or inf in x"),
    "positions of low precision": ({"t_lower": lambda v: v.half()}, "table t_lower"),
    "pieces of no segment": ({"segment": lambda v: v.index_fill(0, ONE, 99)}, "without pieces"),
    "a lower end above the upper": ({"lower": lambda v: v * 0 + 1}, "above upper"),
    "a limit that is none": ({"limit": lambda v: float("inf")}, "limit is inf"),
}
ONE = torch.tensor([1])


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_certificate_is_rejected_with_its_reason(name, files, tmp_path):
    changes, reason = TAMPERED[name]
    reasons = check_certificate(tampered(files[0], tmp_path / "c", **changes))
    assert any(re.search(reason, r) for r in reasons), reasons


def test_a_certificate_of_another_string_is_rejected(files, found, tmp_path):
    path, string, certificate = files
    moved = tampered(path, tmp_path / "c", thetas=times(40, 1 + 1e-6))
    reasons = check_certificate(moved, string)
    assert reasons == ["network 1 of the certificate is not network 1 of the string"]
    other = replace(dss.String.load(string), L0=0.02).save(tmp_path / "s")
    assert check_certificate(path, other) == [], "it proves more than the string claims"
    other = replace(dss.String.load(string), L0=0.005).save(tmp_path / "s")
    assert any("the limit is 0.01" in r for r in check_certificate(path, other))


def test_a_changed_byte_is_seen(files, tmp_path):
    content = bytearray(files[0].read_bytes())
    content[-3] ^= 1
    (tmp_path / "c").write_bytes(content)
    assert "the certificate file was changed after it was written" in check_certificate(
        tmp_path / "c"
    )


@pytest.mark.parametrize("kind", ["dss-certificate-9", "dss-string-1"])
def test_another_version_is_refused(files, tmp_path, kind):
    certificate = files[2]
    save_tensors(tmp_path / "c", kind, {"thetas": certificate.thetas}, {})
    for read in (check_certificate, dss.Certificate.load):
        with pytest.raises(
            ValueError, match=f"format is '{kind}'; '{CERTIFICATE_FORMAT}' is known"
        ):
            read(tmp_path / "c")


def test_the_checker_shares_no_code_with_the_prover():
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, 'dss/proofs'); import checker"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_confirms_and_rejects(files, tmp_path):
    path, string, certificate = files

    def run(*arguments):
        command = [sys.executable, "-m", "dss", "check-certificate", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    good = run(path, "--string", string)
    assert good.returncode == 0 and good.stdout.strip().endswith("confirmed: proved")
    assert f"proved              {len(certificate.status)}" in good.stdout
    bad = run(tampered(path, tmp_path / "c", bound=times(2, 0.5)))
    assert bad.returncode == 1 and "is not confirmed" in bad.stderr and "rejected" in bad.stdout
    none = run(tmp_path / "none")
    assert none.returncode == 1 and "Traceback" not in none.stderr and "none" in none.stderr


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_image_networks_are_proved_and_confirmed(name, seeded, tmp_path):
    task = dss.digits(network=name, n_eval=60)
    thetas = dss.train_endpoints(task, 2, [0.5], seeded(), **task.train_settings).thetas[0]
    string = dss.find_string(task, *thetas, 0.5, generator=seeded(), **task.settings)
    certificate = dss.certify(task, string)
    assert string.connected and certificate.proved
    assert check_certificate(certificate.save(tmp_path / "c")) == []


def test_overflow_is_never_a_proof(tmp_path):
    """Outputs that overflow compare as NaN, and every comparison with NaN is False."""
    layers = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 2)
    x, label = torch.ones(1, 1).double(), torch.zeros(1, dtype=torch.int64)
    module = nn.Sequential(*layers).double()
    task = dss.Task.from_module(module, "cross_entropy", (x, label), (x, label), metric="error")
    theta = torch.tensor([1e200, 1e200, 0, 1, 0, 0], dtype=torch.float64)
    string = string_of(task, theta, theta, L0=0.5)
    certificate = dss.certify(task, string, budget=8)
    assert string.Gamma_tilde == 1 and certificate.status == ["undecided"]
    forged = replace(
        certificate, upper=certificate.upper * 0, bound=certificate.bound * 0, status=["proved"]
    )
    forged = replace(forged, upper=torch.zeros(1).double(), bound=torch.zeros_like(forged.begin))
    reasons = check_certificate(forged.save(tmp_path / "c"))
    assert any("is not confirmed" in r for r in reasons)


def test_an_infinite_loss_is_no_lower_bound_and_no_crash():
    x = torch.ones(1, 1).double()
    task = network(nn.Sequential(nn.Linear(1, 1, bias=False)), x, x * 0)
    theta = torch.tensor([1e200], dtype=torch.float64)
    string = dss.String(torch.stack([theta, theta]), "connected", 1.0, 0.9, 1.0, 33, float("nan"))
    certificate = dss.certify(task, string, budget=8)
    assert certificate.refuted and torch.isfinite(certificate.lower).all()


@pytest.mark.parametrize("undo", ["weight norm", "pruning"])
def test_layers_whose_bias_comes_first_are_refused_and_measured_right(undo, plain_loss):
    module = dss.networks.architectures.mlp([2, 3, 2]).double()
    for layer in (module[0], module[2]):
        if undo == "pruning":
            prune.identity(layer, "weight")
            prune.remove(layer, "weight")
        else:
            nn.utils.remove_weight_norm(nn.utils.weight_norm(layer))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = network(module, x, x)
    thetas = task.init(3)
    for theta, value in zip(thetas, task.losses(thetas), strict=True):
        torch.testing.assert_close(plain_loss(task, theta), value)
    with pytest.raises(ValueError, match="bias before its weight"):
        dss.certify(task, string_of(task, *thetas, L0=1.0))


@pytest.mark.parametrize(
    "y, message",
    [
        (torch.tensor([[0], [1], [0]]), "integer labels"),
        (torch.tensor([0.0, 1.0, 1.0]), "integer labels"),
        (torch.tensor([0, 1, 2]), "from 0 to C - 1"),
        (torch.tensor([True, False, True]), "integer labels"),
    ],
)
def test_targets_that_the_metric_takes_otherwise_are_refused(y, message):
    x = torch.randn(3, 2).double()
    task = network(nn.Sequential(nn.Linear(2, 2)), x, torch.tensor([0, 1, 1]), "cross_entropy")
    odd = replace(
        task,
        metric="error",
        metric_function=dss.networks.losses.LOSSES["error"],
        splits={"test": (x, y)},
    )
    string = dss.String(task.init(2), "connected", 0.5, 0.9, 1.0, 33, float("nan"))
    with pytest.raises(ValueError, match=message):
        dss.certify(odd, string)
    nothing = replace(task, splits={"test": (x * torch.nan, torch.tensor([0, 1, 1]))})
    with pytest.raises(ValueError, match="x of the evaluation set holds NaN"):
        dss.certify(nothing, string)


def test_strings_that_no_limit_or_number_can_be_taken_from(found):
    task, strings = found
    assert dss.certify_strings(task, []) == []
    with pytest.raises(ValueError, match="limit is 0.0"):
        dss.certify(task, replace(strings[0], L0=0.0))
    with pytest.raises(TypeError, match="bfloat16"):
        dss.certify(task, replace(strings[0], thetas=strings[0].thetas.bfloat16()))
    with pytest.raises(ValueError, match="budget is inf"):
        dss.certify(task, strings[0], budget=float("inf"))
    with pytest.raises(ValueError, match="1 network"):
        dss.certify(task, replace(strings[0], thetas=strings[0].thetas[:1]))
    assert dss.certify(task, strings[0], budget=1).n_bounded == strings[0].n_beads + 1


def test_layers_that_do_nothing_are_passed_over(tmp_path, seeded):
    x, y = (torch.randn(8, 2, generator=seeded(i)) for i in range(2))
    layers = nn.Linear(2, 3), nn.Identity(), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 2)
    task = dss.Task.from_module(nn.Sequential(*layers).eval(), "mse", (x, y), (x, y))
    certificate = dss.certify(task, string_of(task, *task.init(2), L0=9.0))
    assert certificate.proved and len(certificate.layers) == 3
    assert check_certificate(certificate.save(tmp_path / "c")) == []
    assert len(repr(certificate)) < 600
    with pytest.raises(TypeError, match="use certify_strings"):
        dss.certify(task, [certificate])


def test_one_refuted_segment_leaves_the_others_to_be_proved(saddle, point):
    string = string_of(saddle, point(1, 1), point(-0.5, -0.5), point(-3, 3), L0=1.05)
    (certificate,) = dss.certify_strings(saddle, [string], tolerance=0.5)
    assert certificate.status == ["proved", "refuted"]


def test_a_tolerance_ends_where_the_loss_is_nothing(seeded):
    x, y = torch.ones(4, 1).double(), torch.zeros(4, 1).double()
    task = network(nn.Sequential(nn.Linear(1, 1)), x, y)
    zero = torch.zeros(2, dtype=torch.float64)
    (certificate,) = dss.certify_strings(task, [string_of(task, zero, zero, L0=0.1)], tolerance=0.1)
    assert certificate.proved and certificate.n_bounded <= 2


def test_an_autoencoder_is_saved_and_confirmed(tmp_path, seeded):
    x = torch.randn(6, 3, generator=seeded())
    task = dss.Task.from_module(
        dss.networks.architectures.mlp([3, 4, 3], "tanh"), "mse", (x, x), (x, x)
    )
    certificate = dss.certify(task, string_of(task, *task.init(2), L0=9.0))
    assert check_certificate(certificate.save(tmp_path / "c")) == []


@pytest.mark.parametrize("L0", [1e-6, 1e-9, 1e-11])
def test_small_losses_are_confirmed(L0, tmp_path, seeded):
    """Targets are a network's own outputs, a little off."""
    module, generator = dss.networks.architectures.mlp([2, 3, 3, 2]).double(), seeded(1)
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    task = network(module, x, torch.zeros(9, 2).double())
    theta = task.init(1, generator)[0]
    task = network(module, x, task.outputs(theta[None], x)[0])
    other = theta + L0**0.5 * 0.3 * torch.randn(theta.shape, generator=generator).double()
    string = string_of(task, theta, other, L0=L0)
    for tolerance in (None, 1e-3):
        (certificate,) = dss.certify_strings(task, [string], limit=3 * L0, tolerance=tolerance)
        assert certificate.proved
        assert check_certificate(certificate.save(tmp_path / "c")) == []


WINDOWS = {
    "padding of a largest value": (2, {"padding": [1, 1]}, "padding of maxpool2d"),
    "a negative stride": (0, {"stride": [-1, 1]}, "stride"),
    "groups": (0, {"groups": 4}, "settings of conv2d"),
    "another image": (0, {"shape": [1, 16, 4]}, "conv2d on"),
    "a padding without end": (0, {"padding": [10**6, 10**6]}, "conv2d"),
    "outputs that are not there": (0, {"n_out": 7}, "n_out of conv2d"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_layers_that_lie_are_rejected(name, tmp_path, seeded):
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)
    x, y = torch.randn(4, 1, 8, 8, generator=seeded()), torch.tensor([0, 1, 1, 0])
    task = dss.Task.from_module(nn.Sequential(*layers), "cross_entropy", (x, y), (x, y))
    certificate = dss.certify(task, string_of(task, *task.init(2), L0=5.0))
    path = certificate.save(tmp_path / "c")
    assert check_certificate(path) == []
    i, change, reason = WINDOWS[name]
    told = [dict(v) for v in certificate.layers]
    told[i] |= change
    reasons = check_certificate(tampered(path, tmp_path / "d", layers=lambda v: told))
    assert reasons and reason in reasons[-1]


class Tutorial(nn.Module):
    """As tutorials write it, with its layers declared in another order than they are used in."""

    def __init__(self):
        super().__init__()
        self.fc2, self.fc1 = nn.Linear(4, 1), nn.Linear(1, 4)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class Wrapped(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        x = x.view(x.size(0), -1)
        return F.dropout(self.inside(x).flatten(1), 0.5, training=False)


def in_a_row():
    return nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))


EQUIVALENTS = {
    "tutorial": Tutorial,
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(1, 4), nn.ReLU()), nn.Linear(4, 1)),
    "wrapped": lambda: Wrapped(in_a_row()),
}


@pytest.mark.parametrize("kind", EQUIVALENTS)
def test_what_is_written_otherwise_is_proved_as_a_sequence_is(kind, tmp_path, seeded):
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    task, plain = (
        dss.Task.from_module(module.double(), "mse", (x, x**2), (x, x**2))
        for module in (EQUIVALENTS[kind](), in_a_row())
    )
    certificates = []
    thetas = plain.init(3, seeded(2))
    swapped = torch.cat([thetas[:, 8:], thetas[:, :8]], dim=1)
    for t, v in ((plain, thetas), (task, swapped if kind == "tutorial" else thetas)):
        string = string_of(t, *v, L0=1.01 * float(dss.losses_along(t, v)[1].max()))
        certificates.append(dss.certify(t, string, tolerance=0.05))
    plain_one, other = certificates
    assert other.proved and torch.equal(other.bound, plain_one.bound)
    assert torch.equal(other.thetas, string.thetas)
    other.save(tmp_path / "a.certificate")
    string.save(tmp_path / "a.string")
    assert check_certificate(tmp_path / "a.certificate", tmp_path / "a.string") == []
    if kind == "tutorial":
        assert [layer.get("start") for layer in other.layers] == [5, None, 0]
        for start in (0, 4, 6, 2**60):
            other.layers[0]["start"] = start  # overlaps, or leaves the networks
            other.save(tmp_path / "wrong.certificate")
            assert check_certificate(tmp_path / "wrong.certificate") != []


class Leaky(Tutorial):
    def forward(self, x):
        return self.fc2(F.leaky_relu(self.fc1(x), 0.3))


def test_leaky_networks_are_proved(tmp_path, seeded):
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    data = (x, x**2)
    module = nn.Sequential(nn.Linear(1, 4), nn.LeakyReLU(0.3), nn.Linear(4, 1)).double()
    task = dss.Task.from_module(module, "mse", data, data)
    written = dss.Task.from_module(Leaky().double(), "mse", data, data)
    thetas = task.init(3, seeded(2))
    highest = float(dss.losses_along(task, thetas, 1001)[1].max())
    string = string_of(task, *thetas, L0=1.001 * highest)
    certificate = dss.certify(task, string)
    assert certificate.proved and certificate.layers[1] == {
        "layer": "leaky_relu",
        "slope": 0.3,
        "n_out": 4,
    }
    swapped = torch.cat([thetas[:, 8:], thetas[:, :8]], dim=1)
    other = dss.certify(written, string_of(written, *swapped, L0=1.001 * highest))
    assert other.proved and torch.equal(other.bound, certificate.bound)
    assert dss.certify(task, string_of(task, *thetas, L0=0.999 * highest)).refuted
    string.save(tmp_path / "a.string")
    certificate.save(tmp_path / "a.certificate")
    assert check_certificate(tmp_path / "a.certificate", tmp_path / "a.string") == []
    for slope in (1.0, 1.5, "0.3", None):  # of another network, or of none
        certificate.layers[1]["slope"] = slope
        certificate.save(tmp_path / "wrong.certificate")
        assert check_certificate(tmp_path / "wrong.certificate") != []


class Skipping(Tutorial):
    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


class Mixing(Tutorial):
    """Its view has the rows of the inputs only by chance."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 8)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)).view(-1, 4)).view(-1, 2)


@pytest.mark.parametrize(
    "module, n_in, message",
    [
        (Skipping(), 1, "is no chain of layers|has no layer"),
        (Mixing(), 2, "a view in it mixes samples"),
        (nn.Sequential(nn.LSTM(1, 1), nn.Linear(1, 1)), 1, "LSTM"),
    ],
)
def test_what_is_no_chain_is_refused(module, n_in, message):
    with pytest.raises(ValueError, match=message):
        records_of_layers(module, torch.randn(6, n_in))
