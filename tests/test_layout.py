"""Imports point downward, `import dss` is light, the public surface is documented, pins agree."""

import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dss
from dss import checkpoint, provenance
from dss.descent import Training
from dss.problems import PROBLEMS

PROJECT = Path(__file__).resolve().parents[1]

# From the ground up; a module imports from lower floors only.
FLOORS = [
    {"checks", "files"},
    {"given", "watch"},
    {
        "parameters",
        "provenance",
        "status",
        "networks.losses",
        "networks.memory",
        "networks.modes",
        "networks.chain",
    },
    {
        "runs.compare",
        "runs.kernels",
        "runs.progress",
        "networks.dense",
        "networks.samples",
    },
    {"networks.units", "networks.observed", "descent"},
    {"theta", "data", "results", "plots", "sources", "stats", "networks.batchnorm"},
    {"networks.brought"},
    {"networks.symmetry"},
    {
        "cifar",
        "treebank",
        "networks.architectures",
        "networks.sequences",
        "networks.adapters",
        "networks.stacks",
        "networks.accept",
        "estimate",
        "strings",
        "proofs.checker",
    },
    {"networks.fields"},
    {"task", "runs.grid", "runs.execute"},
    {"curve", "tasks", "checkpoint", "runs.reproduce", "runs.sweeps", "runs.workers"},
    {"train", "proofs.bounds", "proofs.divide", "runs.verify"},
    {"search"},
    {"averaged"},
    {"apart", "geometry.attempt"},
    {"sampling", "proofs.certify", "geometry.tighten", "geometry.neighbours"},
    {"geometry.passes", "geometry.curvature", "geometry.alignment", "geometry.noise"},
    {"studies", "problems", "geometry", "geometry.pictures"},
    {"examples", "runs.walk"},
    {"runs.examples"},
    {"commands"},
    {"__main__", ""},
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
# Modules that may import less than their floor allows.
ONLY = {
    "recursion": set(),
    "proofs.checker": set(),
    "plots": set(),
    "stats": set(),
    "strings": {"checks", "files", "status", "theta"},
    "runs.grid": {"checks"},
    "runs.compare": {"given"},
    "runs.kernels": set(),
}
WINGS = {"networks", "proofs", "runs"}  # packages that hold no name of their own


def name_of(module):
    """`dss.proofs.bounds` as `proofs.bounds`; the package itself as the empty name."""
    return module.removeprefix("dss").removeprefix(".")


MODULES = {name_of(module): path for module, path in provenance.module_files().items()}


def upward_edges(sources):
    """Imports within dss that FLOORS and ONLY forbid, from {module: source text}."""
    known = [f"dss.{module}" if module else "dss" for module in MODULES]
    edges = []
    for module, text in sources.items():
        below = {m for m in FLOOR if FLOOR[m] < FLOOR.get(module, -1)}
        targets = map(name_of, provenance.imported_modules(text, f"dss.{module}", known))
        allowed = ONLY.get(module, below)
        edges += [f"{module} -> {target}" for target in sorted(targets) if target not in allowed]
    return edges


def test_every_module_has_a_floor():
    assert set(MODULES) - WINGS == set(FLOOR) | {"recursion"}, "a new module needs a floor"


def test_imports_point_downward():
    assert upward_edges({name: path.read_text() for name, path in MODULES.items()}) == []


@pytest.mark.parametrize(
    "module, line",
    [
        ("theta", "from dss.curve import t_star"),
        ("theta", "import dss.curve"),
        ("theta", "from dss import curve"),
        ("theta", "from . import curve"),
        ("theta", "from .curve import t_star"),
        ("theta", "def f():\n    from dss.curve import t_star"),
        ("theta", "import dss"),
        ("theta", "from dss import t_star"),
        ("checks", "from dss.files import write"),
        ("strings", "from dss.task import Task"),
        ("plots", "from dss.theta import interpolate"),
        ("networks.dense", "from dss.networks.stacks import stacked_losses"),
        ("networks.dense", "from dss.networks import stacks"),
        ("networks.dense", "from . import stacks"),
        ("networks.dense", "from ..task import Task"),
        ("task", "from dss.runs.reproduce import reproduce"),
        ("proofs.checker", "from dss.proofs import bounds"),
        ("recursion", "from dss.theta import interpolate"),
        ("networks", "from . import stacks"),
        ("networks", "from .stacks import stacked_losses"),
        ("networks", "from ..task import Task"),
    ],
)
def test_an_upward_edge_is_seen(module, line):
    assert len(upward_edges({module: line})) == 1


@pytest.mark.parametrize("line", ["import torch.nn", "from pathlib import Path", "import dssx"])
def test_other_imports_are_let_through(line):
    assert upward_edges({"theta": line}) == []


def test_import_dss_needs_only_its_dependencies():
    code = "import sys, torch; torch_needs = set(sys.modules); from dss import *; "
    code += "print(*{name.split('.')[0] for name in set(sys.modules) - torch_needs})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    heavy = {"papermill", "torchvision", "sklearn", "scipy", "typer", "yaml", "tqdm", "nbformat"}
    heavy |= {"distributed", "dask", "pyarrow", "filelock"}
    assert "dss" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


def test_commands_do_not_wait_for_torch():
    code = "import sys, dss.commands, dss.runs.sweeps, dss.runs.reproduce; "
    code += "print(*{'torch', 'pandas', 'papermill', 'distributed'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_package_has_its_names_and_modules_and_no_others():
    assert {"quad", "t_star", "__version__"} <= set(dir(dss))
    assert dss.theta.flatten is dss.flatten
    for name in ("theta_star", "_theta", "__path"):
        with pytest.raises(AttributeError, match=name):
            getattr(dss, name)
    with pytest.raises(ImportError):
        from dss import theta_star  # noqa: F401


def test_import_of_plots_waits_for_pandas_and_seaborn():
    code = "import sys, dss.plots; print(*{'pandas', 'seaborn', 'scipy'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_public_names_are_two_dozen_that_readers_meet():
    pages = [PROJECT / "README.md"]
    pages += [p for p in (PROJECT / "notebooks").iterdir() if p.suffix in (".md", ".ipynb")]
    text = "".join(path.read_text() for path in pages)
    assert len(dss.__all__) <= 28  # with the tasks of the later paper
    assert [name for name in dss.__all__ if f"dss.{name}" not in text] == []


QUAD = checkpoint.modules_of(dss.quad())
SEARCHED = provenance.reached_from(QUAD, provenance.module_files())


@pytest.mark.parametrize("module", sorted(SEARCHED))
def test_a_changed_line_in_a_module_of_a_search_changes_its_fingerprint(module, changed):
    before, after = changed(module)
    assert before != after


@pytest.mark.parametrize(
    "module", ["plots", "stats", "results", "commands", "recursion", "studies"]
)
def test_a_changed_line_elsewhere_does_not(module, changed):
    before, after = changed(f"dss.{module}")
    assert before == after


def test_wings_that_a_search_does_not_use_are_not_in_its_fingerprint():
    wings = {name.split(".")[1] for name in SEARCHED if name.count(".") == 2}
    assert wings == {"networks", "runs"}
    assert {name for name in SEARCHED if name.startswith("dss.runs.")} == {
        "dss.runs.grid",
        "dss.runs.workers",
    }
    assert {"dss.networks.dense", "dss.curve", "dss.train", "dss.descent"} <= SEARCHED


def test_the_module_in_which_a_layer_of_a_task_is_written_counts(seeded):
    class Layer(torch.nn.Linear):
        __module__ = "dss.plots"  # as if it were written there

    x = torch.rand(8, 2, generator=seeded())
    task = dss.Task.from_module(Layer(2, 2), "mse", (x, x), (x, x))
    assert "dss.plots" in checkpoint.modules_of(task)
    assert "dss.plots" not in SEARCHED
    assert "dss.networks.batchnorm" in SEARCHED, "a task uses it"
    assert "dss.tasks" in checkpoint.modules_of(dss.landscape(lambda v: v.sum(-1), 2))
    assert "dss.problems" in checkpoint.modules_of(PROBLEMS["ring"].task("ring"))
    assert "dss.networks.losses" in checkpoint.modules_of(dss.digits("mlp", "error"))


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """The source digest of a search before and after a line is added to a module."""

    def change(module):
        shutil.copytree(provenance.PACKAGE, tmp_path / "dss")
        monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "dss")
        monkeypatch.setattr(provenance, "PROJECT", tmp_path)
        before = provenance.source(*QUAD)
        everything = provenance.source()
        with provenance.module_files()[module].open("a") as file:
            file.write("# changed\n")
        assert provenance.source() != everything, "the digest of the whole package sees each"
        return before, provenance.source(*QUAD)

    return change


PUBLIC = [getattr(dss, name) for name in dss.__all__]
ARGUED = [f for f in PUBLIC if inspect.isfunction(f)] + [dss.Results]
METHODS = ["init", "losses", "gradients", "estimate", "to", "from_module"]
METHODS = [getattr(dss.Task, name) for name in METHODS]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_public_names_are_documented(thing):
    doc = inspect.getdoc(thing) or ""
    assert not doc.startswith(f"{thing.__name__}("), "a generated docstring"
    assert len(doc) > 40
    if inspect.isclass(thing) and thing is not dss.Results:
        assert "Attributes:" in doc


@pytest.mark.parametrize("function", ARGUED + METHODS, ids=lambda f: f.__qualname__)
def test_arguments_and_errors_are_documented(function):
    doc = inspect.getdoc(function)
    names = [n for n in inspect.signature(function).parameters if n not in ("self", "cls")]
    assert names
    assert "Args:" in doc
    arguments = doc.split("Args:")[1].split("\n\n")[0]
    if "the fields of `dss.descent.Training`" in " ".join(arguments.split()):
        arguments += inspect.getdoc(Training)
    missing = [name for name in names if not re.search(rf"\b{name}\b", arguments)]
    assert missing == []


RAISING = [f for f in ARGUED + METHODS if "raise" in inspect.getsource(f)]


@pytest.mark.parametrize("function", RAISING, ids=lambda f: f.__qualname__)
def test_errors_are_documented(function):
    assert "Raises:" in inspect.getdoc(function)


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def direct(pyproject):
    """Every requirement that pyproject names, by canonical name."""
    project = pyproject["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(r.name): r for r in requirements}


@pytest.fixture(scope="module")
def lock():
    return (PROJECT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def locked(lock):
    """{name: [(version, number of hashes), ...]} of the lock."""
    entries = {}
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", lock):
        if found := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", block):
            name, version = canonicalize_name(found[1]), found[2]
            hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)
            entries.setdefault(name, []).append((version, len(hashes)))
    return entries


def test_every_direct_dependency_is_pinned_to_a_version_it_allows(pyproject, direct):
    texts = pyproject["tool"]["uv"]["constraint-dependencies"]
    pins = {canonicalize_name(r.name): r.specifier for r in map(Requirement, texts)}
    assert set(pins) == set(direct)
    for name, pin in pins.items():
        (exact,) = pin
        assert exact.operator == "=="
        assert direct[name].specifier.contains(exact.version), name


def test_the_lock_holds_the_pins_with_hashes(pyproject, locked):
    for text in pyproject["tool"]["uv"]["constraint-dependencies"]:
        pin = Requirement(text)
        (exact,) = pin.specifier
        versions = {version for version, _ in locked[canonicalize_name(pin.name)]}
        assert versions == {exact.version}, pin.name


def test_everything_in_the_lock_has_a_hash_and_nothing_names_a_host(lock, locked):
    assert len(locked) > 50
    assert [name for name, entries in locked.items() if not all(n for _, n in entries)] == []
    for text in ("://", "--index-url", "--extra-index-url", "--find-links", "--trusted-host", "@ "):
        assert text not in lock


def test_environment_yml_installs_the_lock(pyproject):
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    assert environment["name"] == "dss"
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["--require-hashes", "-r requirements.lock"]}
    assert "pip" in conda
    (python,) = [entry for entry in conda if entry.startswith("python")]
    version = re.fullmatch(r"python=(\d+\.\d+)", python)[1]
    assert SpecifierSet(pyproject["project"]["requires-python"]).contains(version)
    assert conda in (["pip", python], [python, "pip"])


TOP = {"README.md", "environment.yml", "notebooks", "dss", "figures", "data", "tests"}
TOP |= {"CITATION.cff", "LICENSE", "Makefile", "pyproject.toml", "requirements.lock"}
TOP |= {".ci", ".gitattributes", ".gitignore"}


def test_nothing_else_lies_at_the_top():
    """What a test leaves in the folder that it runs in is soon committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    tracked = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
    assert tracked == TOP
