"""The `dss` command; `python -m dss` is the same."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line."""
    for name in ("papermill", "typer", "yaml"):
        if find_spec(name) is None:
            sys.exit(
                f"dss: {name} is missing; install the notebooks extra: pip install .[notebooks]"
            )
    from dss.commands import app, run

    run(app, "dss")


if __name__ == "__main__":
    main()
