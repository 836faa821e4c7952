"""The shape of valleys: passes between networks, curvature, other methods, shorter strings."""

from dss.geometry.curvature import Spectrum, spectrum
from dss.geometry.passes import Passes, pass_matrix

__all__ = ["Passes", "Spectrum", "pass_matrix", "spectrum"]
