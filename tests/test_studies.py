"""Studies: the same pairs at falling thresholds, and how their distributions are drawn."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import dss
from dss import plots
from dss.status import Status
from dss.studies import descending_study
from dss.tasks import OfScript

OPTIONS = {"optimizer": "adam", "lr": 1e-2, "max_steps": 600, "patience": 200, "max_depth": 3}


def test_the_same_networks_are_trained_on_from_threshold_to_threshold(quad64, seeded, tmp_path):
    asked = []

    def checkpoint(name):
        asked.append(name)
        return tmp_path / name

    L0 = [0.05, 0.02]
    strings, table = descending_study(quad64, L0, 2, seeded(3), checkpoint, **OPTIONS)
    assert asked == ["mse 0.05.ends", "mse 0.05", "mse 0.02.ends", "mse 0.02"]
    assert table.L0.tolist() == [0.05, 0.05, 0.02, 0.02] and table.pair.tolist() == [0, 1, 0, 1]
    assert len(strings) == 4

    generator = seeded(3)
    thetas = quad64.init(4, generator)
    training = {name: v for name, v in OPTIONS.items() if name != "max_depth"}
    for k, threshold in enumerate(L0):
        ends = dss.train_to(quad64, thetas, threshold, generator=generator, **training)
        thetas = ends.thetas
        here = strings[2 * k : 2 * k + 2]
        for pair, string in enumerate(here):
            assert torch.equal(string.thetas[[0, -1]], thetas[2 * pair : 2 * pair + 2])
            row = table.iloc[2 * k + pair]
            assert row.n_lost == int((~ends.reached).sum())
            if string.trace:
                assert row.straight_line == string.trace[0]["Gamma_tilde"]
        pairs = thetas[::2], thetas[1::2]
        dss.find_strings(quad64, *pairs, threshold, generator=generator, **OPTIONS)


def test_a_string_of_a_low_threshold_serves_the_higher_ones(quad64, seeded, tmp_path):
    options = OPTIONS | {"max_steps": 3000, "max_depth": 8, "patience": 1000}
    study = quad64, [0.05, 0.02, 0.01], 6
    plain, by_search = descending_study(*study, seeded(3), **options)
    offers, by_offer = descending_study(
        *study, seeded(3), lambda name: tmp_path / name, offer=True, **options
    )
    for one, other in zip(plain, offers, strict=True):
        assert torch.equal(one.thetas[[0, -1]], other.thetas[[0, -1]]), "the same networks"
    taken = [s for s in offers if s.detail.startswith("offered")]
    assert len(taken) == by_offer.offered.sum() >= 3
    assert not by_offer.offered[by_offer.L0 == 0.01].any(), "there is nothing below the lowest"
    for s in taken:
        assert s.connected and s.gradient_steps == 0 and s.forward_passes > 0
        assert s.trace[0]["open_segments"] == 1, "no offer where the straight line is low"
        assert dss.Gamma_tilde(quad64, s.thetas, 101) <= s.L0 * 1.001
        assert dss.String.load(s.save(tmp_path / "s.safetensors")).trace == s.trace
    assert by_offer.connected.sum() >= by_search.connected.sum()
    steps = [sum(s.gradient_steps for s in strings) for strings in (plain, offers)]
    assert steps[1] < steps[0]
    again, table = descending_study(
        *study, seeded(3), lambda name: tmp_path / name, offer=True, **options
    )
    pd.testing.assert_frame_equal(table, by_offer)


def test_offers_keep_what_is_given_pair_by_pair(quad64, seeded):
    alpha = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 0.95], dtype=torch.float64)
    options = OPTIONS | {"max_steps": 3000, "max_depth": 8, "patience": 1000, "alpha": alpha}
    options["first_bead"] = quad64.init(6, seeded(9))
    strings, table = descending_study(quad64, [0.05, 0.02], 6, seeded(3), offer=True, **options)
    assert 0 < table.offered.sum() < 6
    assert [s.alpha for s in strings] == 2 * alpha.tolist()


def test_networks_that_do_not_get_there_are_counted(quad64, seeded):
    options = OPTIONS | {"max_steps": 1}
    strings, table = descending_study(quad64, [1e-6], 3, seeded(), **options)
    assert {string.status for string in strings} == {Status.ENDPOINT_ABOVE_L0}
    assert table.n_lost.tolist() == [6, 6, 6]
    assert all(math.isnan(value) for value in table.straight_line)


def test_endpoints_may_end_further_below_their_threshold(quad64, seeded):
    L0 = [0.05, 0.02]
    for ends_at in (1.0, 0.8):
        strings, table = dss.study(quad64, L0, 2, seeded(3), ends_at=ends_at, **OPTIONS)
        losses = quad64.losses(torch.cat([string.thetas[[0, -1]] for string in strings]))
        assert (losses.view(-1, 2) <= ends_at * torch.tensor(table.L0)[:, None] * 1.00001).all()
        assert table.L0.tolist() == [0.05, 0.05, 0.02, 0.02]
    for wrong in (0, 1.1):
        with pytest.raises(ValueError, match=f"ends_at is {wrong}"):
            dss.study(quad64, L0, 2, seeded(3), ends_at=wrong, **OPTIONS)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    columns = {"alpha": [0.5, 0.9] * 20, "L0": [0.01] * 20 + [0.003] * 20}
    return pd.DataFrame(columns | {"n_beads": rng.integers(0, 9, 40), "length": rng.random(40)})


def test_a_distribution_shows_every_row_and_is_the_same_every_time(pairs):
    panels = {"n_beads": "beads", "length": "normalized length"}
    drawn = []
    for seed in (1, 2):
        np.random.seed(seed)
        figure = plots.distributions(pairs, "alpha", panels, "L0", r"$\alpha$", {0.01: "high"})
        expected = np.random.RandomState(seed).random()
        assert np.random.random() == expected, "the global generator is left as it was"
        points = [np.concatenate([np.asarray(c.get_offsets()) for c in axis.collections])
                  for axis in figure.axes]  # fmt: skip
        drawn.append(points)
        for axis, (column, label) in zip(figure.axes, panels.items(), strict=True):
            assert axis.get_ylabel() == label and axis.get_xlabel() == r"$\alpha$"
            heights = np.sort(points[list(panels).index(column)][:, 1])
            assert np.allclose(heights, np.sort(pairs[column]))
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["high", "0.003"]
        plots.plt.close(figure)
    for one, other in zip(*drawn, strict=True):
        assert np.array_equal(one, other)


def test_a_figure_of_nothing_says_so(tmp_path):
    columns = ["L0", "case", "n_beads", "n_beads_low", "n_beads_high"]
    empty, panels = pd.DataFrame(columns=columns), {"n_beads": "beads"}
    unknown = pd.DataFrame([[0.1, "a", np.nan, np.nan, np.nan]], columns=columns)
    no_pieces = pd.DataFrame(columns=["begin", "end", "bound", "panel"])
    figures = [
        plots.nothing("why"),
        plots.means(empty, "L0", panels, "case", "L0", ["n_beads"]),
        plots.means(unknown, "L0", panels, "case", "L0", ["n_beads"]),
        plots.curves(empty, "L0", "n_beads", "case", "x", "y", log_y=True),
        plots.distributions(empty, "L0", panels, "case", "L0"),
        plots.envelopes(no_pieces, no_pieces, 0.1, "loss"),
    ]
    for figure in figures:
        assert any(text.get_text() for axis in figure.axes for text in axis.texts)
        figure.savefig(tmp_path / "nothing.png")
        plots.plt.close(figure)


def test_many_groups_and_means_of_nought_are_drawn(tmp_path):
    table = pd.DataFrame({"L0": [0.1, 0.2] * 12, "seed": np.repeat(np.arange(12), 2)})
    table = table.assign(n_beads=0.0, n_beads_low=0.0, n_beads_high=0.0)
    panels = {"n_beads": "beads"}
    figure = plots.means(table, "L0", panels, "seed", "L0", ["n_beads"])
    assert figure.axes[0].get_yscale() == "linear" and figure.axes[0].get_xscale() == "log"
    plots.distributions(table, "L0", panels, "seed", "L0").savefig(tmp_path / "many.png")
    plots.plt.close("all")


@pytest.mark.parametrize("x", [1, 256, 1e-6])
def test_a_single_point_stands_in_the_middle_of_every_panel(x, tmp_path):
    row = {"width": x, "case": "a", "n_beads": 3.0, "n_beads_low": 2.0, "n_beads_high": 4.0}
    table = pd.DataFrame([row | {"length": 1.0, "length_low": 1.0, "length_high": 1.0}])
    figure = plots.means(table, "width", {"n_beads": "beads", "length": "length"}, "case", "x")
    figure.savefig(tmp_path / "one.png")
    for axis in figure.axes:
        assert axis.get_xlim() == (x / 2, 2 * x)
    assert not figure.legends, "nothing tells one line from others"
    figure = plots.means(table, "width", {"n_beads": "beads"}, "case", "x", names={"a": "connect"})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["connect"]
    plots.plt.close("all")


def test_a_logarithmic_axis_has_ticks_however_far_it_reaches(tmp_path):
    table = pd.DataFrame({"x": [0.0, 1.0], "loss": [0.03, 0.04], "path": "string"})
    for L0 in (1e-9, 0.03, 1000):
        figure = plots.curves(table, "x", "loss", "path", "x", "loss", L0, log_y=True)
        figure.savefig(tmp_path / "far.png")
        axis = figure.axes[0]
        low, high = axis.get_ylim()
        assert sum(low <= tick <= high for tick in axis.get_yticks()) >= 2
        plots.plt.close(figure)


def test_a_straight_line_looks_straight_in_two_dimensions():
    line = {"pc1": [-1, 0, 1.0], "pc2": [1e-8, -1e-8, 0], "loss": [0.1, 0.3, 0.1]}
    line = pd.DataFrame(line | {"is_network": [True, False, True]})
    figure = plots.string_2d([line], ["depth 0"], 0.1, [0.9, 0.1])
    low, high = figure.axes[0].get_ylim()
    assert high - low > 0.01
    assert figure.axes[0].get_xlabel() == "PC 1 (90% of the variance)"
    below, above, *_ = figure.axes[0].collections
    assert len(below.get_offsets()) == 2 and len(above.get_offsets()) == 1
    plots.plt.close(figure)


@pytest.mark.parametrize("value", [1e-3, 0.2, 0.5, 50.0])
@pytest.mark.parametrize("vertical", [False, True])
def test_a_marked_line_and_its_name_are_inside(value, vertical, tmp_path):
    row = {"L0": 0.2, "case": "a", "fraction": 0.2, "fraction_low": 0.1, "fraction_high": 0.3}
    table = pd.DataFrame([row | {"n_connected": 1, "n_pairs": 5}])
    drawn = plots.means(table, "L0", {"fraction": "fraction"}, "case", "L0", n_columns=1)
    if not vertical:
        drawn = plots.curves(table, "L0", "fraction", "case", "L0", "fraction")
    figure = plots.mark(drawn, value, "here", place=0.1, vertical=vertical)
    figure.savefig(tmp_path / "marked.png")
    axis, (name,) = figure.axes[0], [t for t in figure.axes[0].texts if t.get_text() == "here"]
    low, high = axis.get_xlim() if vertical else axis.get_ylim()
    assert low <= value <= high
    inside = axis.get_window_extent()
    assert inside.contains(*name.get_window_extent().min)
    assert inside.contains(*name.get_window_extent().max)
    plots.plt.close(figure)


def test_the_style_is_set_when_it_is_asked_for_and_not_before():
    with plots.plt.rc_context():
        plots.plt.rcdefaults()
        before = plots.plt.rcParams["savefig.dpi"]
        plots.use_style()
        assert plots.plt.rcParams["savefig.dpi"] == plots.STYLE["savefig.dpi"] != before


def test_endpoints_can_descend_a_loss_of_their_own(quad64, seeded):
    """As with the L2 penalty that the authors' endpoints pay and beads do not."""
    options = OPTIONS | {"max_steps": 40}
    same, _ = descending_study(quad64, [0.05], 2, seeded(3), ends=quad64, **options)
    plain, _ = descending_study(quad64, [0.05], 2, seeded(3), **options)
    pulled = OfScript(**vars(quad64), l2=torch.full((33,), 0.1))
    other, _ = descending_study(quad64, [0.05], 2, seeded(3), ends=pulled, **options)
    for one, two, three in zip(same, plain, other, strict=True):
        assert torch.equal(one.thetas, two.thetas)
        assert not torch.equal(one.thetas[0], three.thetas[0])
        assert three.task is quad64, "beads and tests are of the task itself"
    with pytest.raises(TypeError, match="task is a str"):
        descending_study(quad64, [0.05], 2, ends="task", **options)
