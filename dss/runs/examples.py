"""Finding the strings of `dss.examples` anew, with their proofs, manifest and page."""

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from dss.checks import lookup
from dss.examples import EXAMPLES, FOLDER, manifest_of, save_proof
from dss.files import write
from dss.given import folder_from
from dss.proofs.certify import certify
from dss.provenance import DATA_READ, PROJECT, environment
from dss.runs.walk import script, walk

# The page walks along this one.
WALKED, PAGE = "mnist mlp", PROJECT / "notebooks" / "_static" / "walk_data.js"


def make(
    names: list[str] | None = None, out: str | Path | None = None
) -> Iterator[tuple[str, dict]]:
    """Find strings anew, on one thread, and write them with what is proved of them.

    Args:
        names: keys of `EXAMPLES`; all without any.
        out: folder, made where it is missing; by default `figures/strings/`, and what the page
            draws goes to its place instead of the folder.

    Yields:
        Name and entry in `manifest.json`, when all files of a string are written.

    Raises:
        ValueError: an unknown name, or `out` is no folder.
        RuntimeError: the data of a task cannot be had.
    """
    examples = {name: lookup(EXAMPLES, name, "example") for name in names or EXAMPLES}
    folder = FOLDER if out is None else folder_from(out, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    page = PAGE if out is None else folder / PAGE.name
    torch.set_num_threads(1)
    for name, example in examples.items():
        started, clock = datetime.now(UTC), time.perf_counter()
        DATA_READ.clear()
        string = example.find()
        stem = folder / name.replace(" ", "_")
        files, summary = [string.save(f"{stem}.string")], string.summary()
        if example.is_bounded:
            proof = certify(string.task, string)
            files.append(save_proof(proof, Path(f"{stem}.proof")))
            summary |= {"proved": proof.proved, "refuted": proof.refuted}
        if name == WALKED:
            write(page, script(walk(string.task, string)))
            files.append(page)
        entry = {
            "task": example.call,
            "seed": example.seed,
            "options": string.task.settings | example.options,
            "string": summary,
            "data": dict(DATA_READ),
            "files": {file.name: sha256_of(file) for file in files},
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 1),
            **environment(),
        }
        manifest = manifest_of(folder) | {name: entry}
        write(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
        yield name, entry


def sha256_of(path: Path) -> str:
    """Of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
