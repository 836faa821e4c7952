"""Pictures of many networks show what their tables say."""

import numpy as np
import pytest
import torch

import dss
from dss import plots
from dss.geometry import Passes, pass_matrix, pictures


@pytest.fixture(scope="module")
def wells():
    """Three valleys at 0, 0.1 and 0.2, the first two joined at about 1, all at about 2."""

    def loss(theta):
        x = theta[..., 0]
        return 0.1 * x + (1 - torch.cos(2 * torch.pi * x)) / 2 * (1 + (x > 1))

    task, thetas = dss.landscape(loss, 1), torch.arange(3, dtype=torch.float64)[:, None]
    return pass_matrix(task, thetas, [3.0], n_t=201, max_depth=0)


def test_a_tree_joins_networks_at_their_passes(wells):
    figure = pictures.merge_trees({"wells": wells, "again": wells}, "loss")
    assert [axis.get_title() for axis in figure.axes] == ["wells", "again"]
    for axis in figure.axes:
        *joints, trunk = [line.get_xydata() for line in axis.lines]
        tops = [float(joint[1, 1]) for joint in joints]
        assert tops == pytest.approx(wells.linkage[:, 2].tolist()) and len(joints) == 2
        leaves = sorted(y for joint in joints for y in (joint[0, 1], joint[-1, 1]))
        assert leaves == pytest.approx(sorted([*wells.losses, tops[0]]))
        assert trunk[0, 1] == tops[-1] and trunk[1, 1] == axis.get_ylim()[1]


def test_a_bar_goes_from_birth_to_death(wells):
    axis = pictures.barcodes({"wells": wells}, "loss").axes[0]
    finite, last = (
        [segment[:, 0] for segment in lines.get_segments()] for lines in axis.collections
    )
    bars = wells.bars()
    bars = bars[np.isfinite(bars[:, 1])]
    assert np.sort(finite, axis=0) == pytest.approx(np.sort(bars, axis=0))
    assert last[0].tolist() == pytest.approx([wells.losses.min(), axis.get_xlim()[1]])


def test_a_map_has_the_heights_in_the_order_of_the_tree(wells):
    figure = pictures.height_map(wells, "height")
    meshes = [c.get_array() for axis in figure.axes for c in axis.collections]
    (mesh,) = [values for values in meshes if values is not None and values.size == 9]
    values = np.sort(mesh.ravel()).tolist()
    assert values == pytest.approx(np.sort(wells.heights.ravel()).tolist())
    plots.plt.close(figure)


def test_a_triangle_shows_the_loss_at_its_corners():
    weights = np.array([(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]) / 4
    losses = weights @ [1.0, 2.0, 4.0]
    axis = pictures.triangle(losses, weights, 1.5, "loss").axes[0]
    assert axis.collections[0].get_array().ravel().tolist() == pytest.approx(losses.tolist())
    assert len(axis.collections) == 2, "a line where the loss is L0"
    assert len(pictures.triangle(losses, weights, 9.0, "loss").axes[0].collections) == 1


def test_without_networks_a_figure_says_so():
    for draw in (pictures.merge_trees, pictures.barcodes):
        (text,) = draw({}, "loss").axes[0].texts
        assert "no two networks" in text.get_text()


def test_passes_without_a_finite_loss_are_drawn_or_said():
    losses = np.array([0.1, 0.2, 0.3])
    own = np.array([[0.1, 0.5, np.inf], [0.5, 0.2, np.inf], [np.inf, np.inf, 0.3]])
    cut = Passes(losses, own, {}, None)
    axis = pictures.merge_trees({"cut": cut}, "loss").axes[0]
    assert np.isfinite([line.get_ydata() for line in axis.lines[:2]]).all()
    assert pictures.barcodes({"cut": cut}, "loss").axes[0].collections
    (text,) = pictures.height_map(cut, "height").axes[0].texts
    assert "no path has a finite loss" in text.get_text()


@pytest.mark.parametrize(
    ("weights", "L0", "said"),
    [
        (np.eye(2), 1.0, "weights has shape"),
        (7 * np.eye(3), 1.0, "add up to 1"),
        (np.eye(3), "a", "L0"),
    ],
)
def test_a_triangle_that_is_none_is_refused(weights, L0, said):
    with pytest.raises((TypeError, ValueError), match=said):
        pictures.triangle(np.ones(3), weights, L0, "loss")
