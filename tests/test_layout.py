"""Imports point downward, `import dss` is light, the public surface is documented, pins agree."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dss

PROJECT = Path(__file__).resolve().parents[1]

# From low to high; a module imports from lower lines only.
LAYERS = [
    {"theta", "files", "checker", "provenance", "batchnorm"},
    {"data", "dense"},
    {"networks"},
    {"task"},
    {"tasks", "checkpoint"},
    {"train"},
    {"curve"},
    {"strings"},
    {"sampling", "bounds"},
    {"certify"},
    {"results", "plots", "stats"},
    {"notebooks"},
    {"reproduce", "sweeps"},
    {"verify"},
    {"__main__"},
    {"__init__"},
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
# Modules that may import less than their line allows.
ONLY = {"strings": {"theta", "files"}, "plots": set(), "stats": set()}


def upward_edges(sources):
    """Imports within dss that LAYERS and ONLY forbid, from {module: source text}."""
    edges = []
    for module, text in sources.items():
        allowed = {m for m in RANK if RANK[m] < RANK[module]}
        edges += [
            f"{module} -> {target}"
            for target in sorted(imported(ast.parse(text)))
            if target not in ONLY.get(module, allowed)
        ]
    return edges


def imported(tree):
    """Names of the modules of dss that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {n.partition(".")[2] or "__init__" for n in names if n.split(".")[0] == "dss"}
        elif isinstance(node, ast.ImportFrom):
            base = "dss" if node.level else node.module.split(".")[0]
            within = node.module or "" if node.level else node.module.partition(".")[2]
            if base == "dss":
                found |= {within} if within else {submodule(alias.name) for alias in node.names}
    return found


def submodule(name):
    return name if name in RANK else "__init__"


def test_imports_point_downward():
    sources = {path.stem: path.read_text() for path in (PROJECT / "dss").glob("*.py")}
    assert set(sources) <= set(RANK), "a new module needs a line in LAYERS"
    assert upward_edges(sources) == []


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
        ("theta", "from dss.files import write"),
        ("strings", "from dss.task import Task"),
        ("plots", "from dss.theta import interpolate"),
    ],
)
def test_an_upward_edge_is_seen(module, line):
    assert len(upward_edges({module: line})) == 1


@pytest.mark.parametrize("line", ["import torch.nn", "from pathlib import Path", "import dssx"])
def test_other_imports_are_let_through(line):
    assert upward_edges({"theta": line}) == []


def test_import_dss_needs_only_its_dependencies():
    code = "import sys, torch; torch_needs = set(sys.modules); import dss; "
    code += "print(*{name.split('.')[0] for name in set(sys.modules) - torch_needs})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    heavy = {"papermill", "torchvision", "sklearn", "scipy", "typer", "yaml", "tqdm", "nbformat"}
    heavy |= {"distributed", "dask", "pyarrow", "filelock"}
    assert "dss" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


PUBLIC = [getattr(dss, name) for name in dss.__all__]
ARGUED = [f for f in PUBLIC if inspect.isfunction(f)] + [dss.Results]
METHODS = [getattr(dss.Task, name) for name in ("init", "losses", "gradients", "to", "from_module")]


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
