"""A file with one damaged value and a digest that fits is refused with its path and the field."""

import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import dss
from dss import files
from dss.proofs.checker import check_certificate

DEEP = "a value nested 10,000 deep"
GONE = object()
VALUES = [
    GONE,
    None,
    "a",
    -1,
    1.5,
    math.nan,
    math.inf,
    True,
    10**400,
    [],
    ["a"],
    {},
    {"a": 1},
    DEEP,
]


def read(path):
    """Tensors and values of a file, and what it is."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    what = metadata["format"].split("-")[1]
    return tensors, json.loads(metadata[what]), what


def rewrite(path, tensors, values, what):
    text = json.dumps(values).replace(json.dumps(DEEP), "[" * 10_000 + "]" * 10_000)
    digest = files._digest(tensors, text)
    save_file(tensors, path, {"format": f"dss-{what}-1", what: text, "sha256": digest})


def places(values, depth=3):
    """Paths to every value within values, outer ones too; of lists the first and the last."""
    items = []
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list):
        items = [(i, values[i]) for i in sorted({0, len(values) - 1}) if values]
    for key, value in items if depth else ():
        yield (key,)
        yield from ((key, *rest) for rest in places(value, depth - 1))


def damaged_values(values):
    """(place, damage, values with it) for every place and damage that changes something."""
    for place in places(values):
        for damage in VALUES:
            changed = copy.deepcopy(values)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if type(inner[place[-1]]) is type(damage) and inner[place[-1]] == damage:
                continue
            if damage is GONE:
                del inner[place[-1]]
            else:
                inner[place[-1]] = damage
            yield place, damage, changed
    yield ("surplus",), 1, values | {"surplus": 1}


def damaged_tensors(tensors):
    """(name, damage, tensors with it)."""
    for name, v in tensors.items():
        some = v.dtype.is_floating_point and v.numel()
        changes = {
            "missing": None,
            "whole numbers": v.to(torch.int16),
            "eight bits": v.to(torch.float8_e4m3fn) if some else v.to(torch.int8),
            "flags": v.bool() if v.dtype != torch.bool else v.to(torch.uint8),
            "one number": torch.zeros((), dtype=v.dtype),
            "no rows": v[:0],
            "too few rows": v[1:],
            "another axis": v[None],
            "NaN": torch.full_like(v, torch.nan) if some else None,
            "negative": torch.full_like(v, -1) if v.dtype == torch.int64 else None,
        }
        for damage, changed in changes.items():
            if damage == "missing":
                yield name, damage, {n: t for n, t in tensors.items() if n != name}
            elif changed is not None and not (changed.dtype == v.dtype and changed.equal(v)):
                yield name, damage, tensors | {name: changed.contiguous()}
    yield "surplus", "surplus", tensors | {"surplus": torch.zeros(2)}


def outcomes(path, load, others=frozenset()):
    """What becomes of each damage; all but ValueErrors with path and field are not caught."""
    accepted, (tensors, values, what) = set(), read(path)
    damaged = path.with_name("damaged")
    cases = [(p, d, tensors, changed) for p, d, changed in damaged_values(values)]
    cases += [((n,), d, changed, values) for n, d, changed in damaged_tensors(tensors)]
    for place, damage, some_tensors, some_values in cases:
        rewrite(damaged, some_tensors, some_values, what)
        try:
            load(damaged)
        except ValueError as error:
            assert str(error).startswith(f"{damaged} is not a readable {what} file: ")
            names = {str(key) for key in place} | others
            if damage in ("no rows", "too few rows", "another axis"):  # or what does not fit to it
                names = set(tensors) | set(values)
            named = any(name in str(error).partition("file: ")[2] for name in names)
            named |= place[0] == "made by" and "of another search" in str(error)
            assert named or (damage == DEEP and "nested too deep" in str(error)), (place, error)
            assert len(str(error)) < 500
        else:
            accepted.add((".".join(map(str, place)), str(damage) if damage is not GONE else "gone"))
    return accepted


@pytest.fixture(scope="module")
def task():
    return dss.quad(n_train=8, n_eval=8)


@pytest.fixture(scope="module")
def ends(task):
    return dss.train_endpoints(task, 2, [0.05], **task.train_settings).thetas[0]


@pytest.fixture
def string(task, ends):
    return dss.find_string(task, *ends, 0.05, insert_first=True, **task.settings)


def allowed(places, damages):
    return {(place, str(damage)) for place in places for damage in damages}


def test_strings(string, tmp_path):
    accepted = outcomes(string.save(tmp_path / "s"), dss.String.load)
    numbers = [place for place in ("Gamma_tilde", *_rows("trace", string.trace, "Gamma_tilde"))]
    right = allowed(numbers, [-1, 1.5, math.nan, math.inf])
    right |= {("slack", "1.5"), ("L0", "1.5"), ("trace", "[]"), ("detail", "a"), ("detail", DEEP)}
    right |= {(f"trace.{i}", "gone") for i in (0, len(string.trace) - 1)}
    assert accepted - {("thetas", "too few rows")} <= right


def test_certificates(task, string, tmp_path):
    certificate = dss.certify(task, string)
    accepted = outcomes(certificate.save(tmp_path / "c"), dss.Certificate.load)
    changed = {(place.split(".")[0], damage) for place, damage in accepted}
    unlike = ("missing", "eight bits", "flags", "one number", "no rows", "NaN", "gone", "None", "a")
    assert {(p, d) for p, d in changed if d in unlike} <= {("trace", "gone"), ("layers", "gone")}
    assert not {p for p, _ in changed} & {
        "metric",
        "status",
        "segment",
        "t_lower",
        "upper",
        "bound",
    }


def judged(path):
    """A certificate that is rejected, as one that cannot be read."""
    if reasons := check_certificate(path):
        text = "; ".join(reasons)[:300]
        raise ValueError(f"{path} is not a readable certificate file: {text}")


# What else may be named where a value and a claim do not fit each other.
CLAIMS = {
    "dtype",
    "segment",
    "piece",
    "bound",
    "settings",
    "n_out",
    "targets",
    "linear",
    "layer",
    "parameters",
    "t =",
}


def test_certificates_that_are_checked(task, string, tmp_path):
    accepted = outcomes(dss.certify(task, string).save(tmp_path / "c"), judged, CLAIMS)
    places = {place.split(".")[0] for place, _ in accepted}
    assert places <= {"limit", "n_bounded", "trace", "status", "lower", "t_lower"}, accepted


def test_strings_that_a_certificate_is_compared_with(task, string, tmp_path):
    path = dss.certify(task, string).save(tmp_path / "c")
    (tensors, values, what), other = read(string.save(tmp_path / "s")), tmp_path / "damaged"
    cases = [(p[0], tensors, changed) for p, _, changed in damaged_values(values)]
    cases += [(n, changed, values) for n, _, changed in damaged_tensors(tensors)]
    for name, some_tensors, some_values in cases:
        rewrite(other, some_tensors, some_values, what)
        try:
            reasons = check_certificate(path, other)
        except ValueError as error:
            assert str(error).startswith(f"{other} is not a readable string file: ")
        else:
            assert reasons or name not in ("thetas", "L0") or some_values["L0"] == 1.5
    with pytest.raises(OSError):
        check_certificate(path, "")


CALLS = {
    "find_strings": lambda task, ends, path: dss.find_strings(
        task, ends[:1], ends[1:], 0.05, insert_first=True, max_depth=2, checkpoint=path
    ),
    "train_to": lambda task, ends, path: dss.train_to(task, ends, 0.06, checkpoint=path),
    "train_endpoints": lambda task, ends, path: dss.train_endpoints(
        task, 1, [5.0], checkpoint=path
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_checkpoints(name, task, ends, tmp_path, monkeypatch):
    CALLS[name](task, ends, tmp_path / "c")
    made_by = read(tmp_path / "c")[1]["made by"]
    monkeypatch.setattr(dss.checkpoint, "fingerprint", lambda *_: made_by)
    monkeypatch.setattr(dss.sampling, "fingerprint", lambda *_: made_by)
    accepted = outcomes(tmp_path / "c", lambda path: CALLS[name](task, ends, path))
    places = {place.removeprefix("state.").split(".")[0] for place, _ in accepted}
    assert places <= {"state", "losses", "thetas", "trace", "detail", "on device"}, accepted
    diverged = {("losses", "NaN"), ("thetas", "NaN")} if name == "train_to" else {("losses", "NaN")}
    assert {(p, d) for p, d in accepted if p in ("thetas", "losses", "generator")} <= diverged


def _rows(name, rows, column):
    return [f"{name}.{i}.{column}" for i in sorted({0, len(rows) - 1})]
