"""The shape of valleys: passes between networks, their symmetries, curvature; other methods."""

from dss.geometry.alignment import align, shuffled
from dss.geometry.curvature import Spectrum, spectrum
from dss.geometry.passes import Passes, pass_matrix

__all__ = ["Passes", "Spectrum", "align", "pass_matrix", "shuffled", "spectrum"]
