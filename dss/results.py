"""Where a notebook puts its tables and figures, and the manifest that says how they were made."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dss.checks import check_assertions
from dss.files import write
from dss.given import folder_from, manifest_from
from dss.parameters import check_parameters, declared_parameters, paper_parameters
from dss.provenance import DATA_READ, PROJECT, environment, notebook_sha256

if TYPE_CHECKING:
    import pandas as pd

# In the folder of a run that may be killed; the runner makes it (`dss reproduce`, `dss sweep`).
CHECKPOINTS = ".checkpoints"

# How far what a search measures may be off on another machine, by column of `String.summary` and
# `dss.stats.summarise`, in the distance of `dss verify`.  With torch's other instruction sets
# (ATEN_CPU_CAPABILITY=default) rounding differs and descents part; all tables at quick size are
# within these.
TOLERANCES = {
    "*_sem": 0.2,
    "n_beads*": 0.05,
    "normalized_length*": 0.03,
    "Gamma*": 0.1,
    "gradient_steps*": 0.1,
    "depth_reached": 0.03,
    "status": 0.02,
    "connected": 0.02,
    "n_connected": 0.02,
    "fraction*": 0.02,
    "n_drawn": 0.05,
    "n_discarded": 0.1,
    "rows": 0.05,
}


class Results:
    """Tables and figures of one notebook run.

    Files go to `out` where the notebook has that parameter set, else to `$DSS_OUT`, else to
    `figures/<size>/` of the project, whatever folder the notebook runs in.  `finish`
    gives every figure an entry in `manifest.json` beside it.

    Args:
        notebook: its name without ending.
        scope: `globals()`, called right after the parameters cell: its plain values are the
            parameters.  `size`, `seed`, `device` and `out` are looked up there.
        tolerances: how far columns may be off in another run, by name or pattern (`"n_beads*"`),
            first match first; columns that match nothing must be equal (`dss verify`).  Start from
            `dss.results.TOLERANCES`.
        timings: columns, by name or pattern, that are not compared at all.
        prefix: of the name of every file; by default the notebook's name.

    Raises:
        RuntimeError: Python runs without assertions (`-O`, PYTHONOPTIMIZE), so that no check of the
            notebook would be one.
        ValueError: no `size` or `seed` among the parameters, a value that its line in the
            parameters cell does not allow, an `out` that is no folder, or `device` is `"cuda"` and
            torch finds none.
    """

    def __init__(
        self,
        notebook: str,
        scope: Mapping,
        tolerances: Mapping[str, float] | None = None,
        timings: Collection[str] = (),
        prefix: str | None = None,
    ):
        check_assertions("this kernel")
        plain = (bool, int, float, str, list, type(None))
        self.parameters = {
            name: value
            for name, value in scope.items()
            if isinstance(value, plain) and not name.startswith("_") and name not in ("In", "Out")
        }
        for name in ("size", "seed"):
            if name not in self.parameters:
                raise ValueError(f"{notebook} has no parameter {name!r}; the manifest needs it")
        self.file = PROJECT / "notebooks" / f"{notebook}.ipynb"
        known = declared_parameters(self.file) if self.file.exists() else {}
        check_parameters(self.file, {n: scope[n] for n in known if n in scope}, known=known)
        check_device(self.parameters.get("device"))
        out = self.parameters.pop("out", "") or os.environ.get("DSS_OUT")
        usual = PROJECT / "figures" / self.parameters["size"]
        self.folder = usual if out is None else folder_from(out, "out, or DSS_OUT,")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_committed = _without_place(self.parameters) in committed_parameters(self.file)
        self.notebook, self.prefix = notebook, prefix or notebook
        self.tables, self.figures, self.rows_vary, self.tables_read = {}, {}, set(), {}
        self.tolerances, self.timings = dict(tolerances or {}), list(timings)
        self.started, self.clock = datetime.now(UTC), time.perf_counter()

    def table(self, frame: "pd.DataFrame", name: str, rows_vary: bool = False) -> "pd.DataFrame":
        """Save a table as CSV and return what was saved, so that figures draw from the file.

        Args:
            frame: tidy, without a meaningful index.
            name: the file is `<prefix>_<name>.csv`.
            rows_vary: which rows there are is measured too; another run's columns are compared as
                distributions, and the number of rows within the tolerance of `"rows"`.
        """
        import pandas as pd

        path = self.folder / f"{self.prefix}_{name}.csv"
        content = frame.to_csv(index=False, float_format="%.9g").encode()
        write(path, content)
        self.tables[path.name] = hashlib.sha256(content).hexdigest()
        self.rows_vary |= {path.name} if rows_vary else set()
        return pd.read_csv(io.BytesIO(content), keep_default_na=True)

    def read(self, name: str, folder: str = "") -> "pd.DataFrame":
        """A table of another notebook; the manifest of this one will hold its hash.

        Args:
            name: of its file without ending: `"02_quad_pairs"`.
            folder: where it lies; empty for `figures/paper` of the project.

        Raises:
            ValueError: there is no such table, or it is not the one that the manifest beside it
                speaks of: its notebook was stopped, or the file was changed.
        """
        import pandas as pd

        place = folder_from(folder or PROJECT / "figures" / "paper", "the folder of the tables")
        path, entries = place / f"{name}.csv", manifest_from(place)
        if not path.is_file():
            makers = entries or manifest_from(PROJECT / "figures" / "paper")
            known = [e["notebook"] for e in makers.values() if path.name in e["tables"]]
            hint = f"; `dss reproduce {Path(known[0]).stem}` makes it" if known else ""
            raise ValueError(f"{path} is not there{hint}")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        for entry in entries.values():
            if entry["tables"].get(path.name, digest) != digest:
                raise ValueError(
                    f"{path} is not the table of {place / 'manifest.json'}: {entry['notebook']} "
                    "was stopped, or the file was changed; run that notebook again"
                )
        self.tables_read[path.name] = digest
        return pd.read_csv(io.BytesIO(content), keep_default_na=True)

    def figure(self, figure, name: str) -> Path:
        """Save a figure as PNG; its manifest entry follows with `finish`.

        Args:
            figure: a matplotlib figure.
            name: the file is `<prefix>_<name>.png`.
        """
        path = self.folder / f"{self.prefix}_{name}.png"
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        write(path, buffer.getvalue())
        self.figures[path.name] = hashlib.sha256(buffer.getvalue()).hexdigest()
        return path

    def checkpoint(self, name: str) -> Path | None:
        """A file for `checkpoint=` of a long search, where the run goes on after it was killed.

        Args:
            name: of the search, another one for each.

        Returns:
            None where nobody asked for checkpoints: the run's folder has no `.checkpoints`.
        """
        folder = self.folder / CHECKPOINTS
        return folder / name if folder.is_dir() else None

    def once(self, name: str, compute: Callable, fields: Collection[str] = ()) -> dict:
        """What `compute()` gives; or, where a run was killed, what that run kept of it.

        Args:
            name: another one for each call.
            compute: gives plain values by name: a row of a table.
            fields: attributes of what it gives that make the row, where it gives no such row.
        """
        path = self.checkpoint(f"{name}.json")
        if path is not None and path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        found = compute()
        values = {field: getattr(found, field) for field in fields} if fields else found
        if path is not None:
            write(path, json.dumps(values).encode())
        return values

    def expect(self, what: str, found: bool) -> None:
        """Say whether something was found that the paper or the default parameters promise.

        What holds of every run is for `assert`.

        Raises:
            AssertionError: it was not found, at the committed parameters of either size.
        """
        print(f"{what}: {'found' if found else 'not found'}")
        if not found and self.is_committed:
            raise AssertionError(f"{what}: not found, with the parameters that promise it")

    def finish(self) -> None:
        """Write the manifest: the last act of a notebook, and the sign that it came to its end."""
        entry = {
            "notebook": f"{self.notebook}.ipynb",
            "notebook_sha256": notebook_sha256(self.file),
            "parameters": portable(self.parameters),
            "seed": self.parameters["seed"],
            "data": dict(DATA_READ),
            "tables_read": self.tables_read,
            "tables": self.tables,
            "tolerances": self.tolerances,
            "timings": self.timings,
            "rows_vary": sorted(self.rows_vary),
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self.clock, 1),
            **environment(self.parameters.get("device", "auto")),
        }
        entries = {name: {"sha256": digest} | entry for name, digest in self.figures.items()}
        update_manifest(self.folder, entries, notebook=f"{self.notebook}.ipynb")


def check_device(device) -> None:
    """Refuse `"cuda"` where torch finds none, by a ValueError."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("device is 'cuda', and torch finds no CUDA here; allowed: auto, cpu")


def committed_parameters(notebook: Path) -> list[dict]:
    """The parameters of a notebook at quick and at paper size, but for where it runs and writes."""
    if not notebook.exists():
        return []
    quick = {name: known.default for name, known in declared_parameters(notebook).items()}
    return [_without_place(quick), _without_place(quick | paper_parameters(notebook))]


def portable(parameters: Mapping) -> dict:
    """The same, with files of this project named from its folder, for a manifest to keep."""

    def is_ours(value) -> bool:
        return isinstance(value, str) and Path(value).is_relative_to(PROJECT)

    return {
        name: Path(value).relative_to(PROJECT).as_posix() if is_ours(value) else value
        for name, value in parameters.items()
    }


def _without_place(parameters: Mapping) -> dict:
    return {name: v for name, v in parameters.items() if name not in ("device", "out")}


def update_manifest(folder: Path, entries: Mapping[str, dict], notebook: str) -> None:
    """Replace the entries of one notebook in `folder/manifest.json`, atomically."""
    path = folder / "manifest.json"
    before = manifest_from(folder)
    manifest = {k: v for k, v in before.items() if v["notebook"] != notebook} | dict(entries)
    write(path, (json.dumps(dict(sorted(manifest.items())), indent=1) + "\n").encode())
