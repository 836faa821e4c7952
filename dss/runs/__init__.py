"""Running notebooks and grids: execute, reproduce, verify, sweep."""
