"""Small images in a grid, each row on its own scale or all on one."""

import numpy as np
import pytest

from dss import plots


@pytest.mark.parametrize(("unit", "limits", "bars"), [(None, [1, 4], 0), ("weight", [4, 4], 1)])
def test_images_share_a_scale_where_they_have_a_unit(unit, limits, bars):
    images = np.stack([np.full((3, 2, 2), 1.0), np.full((3, 2, 2), -4.0)])
    figure = plots.image_rows(images, list("abc"), ["first", "second"], unit)
    found = [axis.images[0].get_clim()[1] for axis in figure.axes[:6:3]]
    assert found == limits
    assert len(figure.axes) == 6 + bars
