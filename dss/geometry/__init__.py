"""The shape of valleys: passes between networks, other methods that find them, shorter strings."""

from dss.geometry.passes import Passes, pass_matrix

__all__ = ["Passes", "pass_matrix"]
