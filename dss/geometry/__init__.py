"""The shape of valleys: passes between networks."""
