"""The shape of valleys: passes between networks, their symmetries, curvature; other methods."""

from dss.geometry.alignment import align, shuffled
from dss.geometry.curvature import CriticalPoint, Spectrum, critical_point, spectrum
from dss.geometry.passes import Passes, pass_matrix

__all__ = [
    "CriticalPoint",
    "Passes",
    "Spectrum",
    "align",
    "critical_point",
    "pass_matrix",
    "shuffled",
    "spectrum",
]
