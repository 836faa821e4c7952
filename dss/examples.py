"""Finished strings that travel with the companion: explored at once, without training."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dss.checks import lookup
from dss.files import load_tensors, save_tensors
from dss.given import folder_from, json_from
from dss.problems import linear_units
from dss.proofs import certify
from dss.provenance import DATA_READ, PROJECT
from dss.strings import String
from dss.studies import study
from dss.task import Task
from dss.tasks import cifar10, mnist, polynomial, ptb, quad

FOLDER = PROJECT / "figures" / "strings"
PROOF_FORMAT = "dss-proof-1"

# What a certificate has of its string and its task: a file of them would hold the digits, too.
OF_STRING_AND_TASK = ("thetas", "x", "y")


@dataclass(frozen=True)
class Example:
    """How a string that travels with the companion was found.

    Attributes:
        make: of the task.
        arguments: of `make`.
        L0: threshold.
        seed: of the generator of initial values, batches and search.
        options: of `dss.study`, beside the settings of the task.
        is_bounded: bounds are known for the network, so that there is a certificate.
    """

    make: Callable[..., Task]
    arguments: dict
    L0: float
    seed: int = 0
    options: dict = field(default_factory=dict)
    is_bounded: bool = True

    @property
    def call(self) -> str:
        """What makes the task, as one writes it."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.make.__module__}.{self.make.__name__}({arguments})"

    def find(self) -> String:
        """The string, found anew."""
        task, generator = self.make(**self.arguments), torch.Generator().manual_seed(self.seed)
        (string,), _ = study(task, [self.L0], 1, generator, **task.settings | self.options)
        return string


BUDGET = {"n_t": 21, "max_steps": 20_000}
UNITS = {"optimizer": "adam", "lr": 0.01, "max_steps": 3_000}
EXAMPLES = {
    "quad": Example(quad, {}, 0.001),
    "cubic": Example(polynomial, {"coefficients": "cubic", "preset": "authors"}, 0.1),
    "mnist mlp": Example(mnist, {"network": "mlp"}, 0.22, options=BUDGET),
    "mnist cnn": Example(mnist, {"network": "cnn"}, 0.15, options=BUDGET),
    "cifar10 cnn": Example(cifar10, {"network": "cnn"}, 1.3, options=BUDGET),
    "ptb lstm": Example(
        ptb, {"network": "lstm", "n_words": 200}, 3.2, options=BUDGET, is_bounded=False
    ),
    "one linear unit": Example(linear_units, {"n_units": 1}, 0.5, options=UNITS),
    "two linear units": Example(linear_units, {"n_units": 2}, 0.5, seed=1, options=UNITS),
}


def load(name: str, folder: str | Path | None = None) -> tuple[Task, String]:
    """A finished string with its task: `task, string = dss.examples.load("mnist mlp")`.

    Args:
        name: a key of `EXAMPLES`; "one linear unit" is a search that had to fail.
        folder: that holds the files; by default `figures/strings/` of the clone.

    Returns:
        The task, and the string, which knows it.

    Raises:
        ValueError: an unknown name, a damaged file, or another copy of the data than the string was
            found on.
        FileNotFoundError: the files are not there; a package that was installed without its clone
            has none.
        RuntimeError: the task's data cannot be had.
    """
    example = lookup(EXAMPLES, name, "example")
    path = path_of(name, ".string", folder)
    string = String.load(path)
    entry = lookup(manifest_of(path.parent), name, f"string of {path.parent}/manifest.json")
    alone = f"the string alone is dss.String.load({str(path)!r})"
    try:
        task = example.make(**example.arguments)
    except RuntimeError as error:
        raise RuntimeError(f"{error}\nWithout the data, {alone}") from error
    for what, copy in entry["data"].items():
        if DATA_READ[what] != copy:
            raise ValueError(
                f"{name} was found on {what} ({copy['kind']}, sha256 {copy['sha256'][:16]}); here "
                f"are other files ({DATA_READ[what]['kind']}), on which its losses are others; "
                f"{alone}"
            )
    return task, replace(string, task=task)


def certificate(name: str, folder: str | Path | None = None) -> certify.Certificate:
    """What is proved of a finished string; `save` writes what `dss check-certificate` reads.

    Args:
        name, folder: as in `load`.

    Raises:
        ValueError: as in `load`; or no bounds are known for this network, or the proof is of other
            networks or samples.
        FileNotFoundError, RuntimeError: as in `load`.
    """
    if not lookup(EXAMPLES, name, "example").is_bounded:
        known = ", ".join(repr(n) for n, example in EXAMPLES.items() if example.is_bounded)
        raise ValueError(f"{name} has no certificate, bounds are not known; there are: {known}")
    task, string = load(name, folder)
    x, y = task.splits["test"]

    def build(tensors: dict, values: dict) -> certify.Certificate:
        if values.pop("of", None) != digest_of(string.thetas, x, y):
            raise ValueError("it is of other networks or samples than those that are here")
        return certify.checked(tensors | {"thetas": string.thetas, "x": x, "y": y}, values)

    return load_tensors(path_of(name, ".proof", folder), PROOF_FORMAT, build)


def save_proof(found: certify.Certificate, path: Path) -> Path:
    """Write what a certificate has beside the string and the samples."""
    names = [n for n in certify.TENSORS if n not in OF_STRING_AND_TASK]
    values = {n: getattr(found, n) for n in certify.VALUES}
    values["of"] = digest_of(found.thetas, found.x, found.y)
    return save_tensors(path, PROOF_FORMAT, {n: getattr(found, n) for n in names}, values)


def digest_of(*tensors: Tensor) -> str:
    """sha256 of the values of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def manifest_of(folder: Path) -> dict[str, dict]:
    """How the strings in a folder were found, by name; nothing where it has no manifest.

    Raises:
        ValueError: the file is not such a manifest.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    entries = json_from(path)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("data"), dict):
            raise ValueError(f"{path} is no manifest of strings: {name!r} has no data")
    return entries


def path_of(name: str, ending: str, folder: str | Path | None) -> Path:
    """The file of an example; FileNotFoundError, with what to do, where it is not there."""
    folder = FOLDER if folder is None else folder_from(folder, "folder")
    path = folder / f"{name.replace(' ', '_')}{ending}"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there. The strings lie in figures/strings/ of a clone of the "
            "companion, not in an installed package: pass folder=, the path of that folder, or "
            f"find the string anew: dss.examples.EXAMPLES[{name!r}].find()"
        )
    return path
