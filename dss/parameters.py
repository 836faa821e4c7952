"""Parameters of a notebook: what its cell declares, which values it allows, and what a text means.

A line of the cell that is tagged `parameters` states name, type, default, range and meaning:

    L0: list[float] = [0.03, 0.01]  # each > 0; thresholds, mse

The range is what stands before the first semicolon of the comment:

    in [0, 10]        in (0, 1]       > 0       >= 1       one of auto, cpu, cuda
    table.parquet or table.csv        # a file with one of these endings, or an empty text
    a folder                          # one that is there, or an empty text

With `each` it holds of every entry of a list, which is not empty and has no entry twice, unless
`may repeat` follows after a comma; `as many as NAME` makes it as long as another list.  A comment
that ends with a comma goes on in the next line, which holds nothing else.
"""

import ast
import io
import math
import operator
import re
import tokenize
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dss.checks import short
from dss.given import json_from, path_from

NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
INTERVAL = re.compile(rf"in ([\[(])({NUMBER}), ({NUMBER})([\])])")
BOUND = re.compile(rf"(>=|>) ({NUMBER})")
CHOICE = re.compile(r"one of (\w[\w ]*(?:, \w[\w ]*)*)")
FILES = re.compile(r"\w+\.\w+(?: or \w+\.\w+)*")
FOLDER = "a folder"
BELOW = {"[": operator.le, "(": operator.lt, "]": operator.le, ")": operator.lt}
# Types that a text can stand for, the first that fits the declaration is taken.
READ = (int, float, bool, type(None), str)
WORDS = {bool: {"true": True, "false": False}, type(None): {"null": None, "none": None, "": None}}


class Text(str):
    """A value as it was typed on a command line; the notebook's declaration says what it means."""


@dataclass(frozen=True)
class Parameter:
    """What a notebook declares of one parameter.

    Attributes:
        name: of the variable.
        type: the annotation, or the type of the default where there is none.
        default: the committed value.
        range: what the comment says before the first semicolon, where that is a range; else "".
    """

    name: str
    type: str
    default: Any
    range: str


def declared_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, by name; none without a cell that is tagged `parameters`.

    Raises:
        ValueError: the file is not a notebook, two cells have the tag, or the cell is not Python.
    """
    try:
        cells = json_from(notebook)["cells"]
        sources = [
            "".join(cell["source"])
            for cell in cells
            if cell["cell_type"] == "code" and "parameters" in cell["metadata"].get("tags", [])
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook} is not a notebook: {error!r}") from error
    if len(sources) > 1:
        raise ValueError(
            f"{notebook.name} has {len(sources)} cells tagged 'parameters'; what is passed goes "
            "after the first, and the others would undo it"
        )
    try:
        return read_cell("".join(sources))
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{notebook.name}: the parameters cell is not Python: {error}") from error


def read_cell(source: str) -> dict[str, Parameter]:
    """The parameters that a cell assigns, by name; values that are no literals are left out."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found, lines = {}, source.splitlines()
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name) or getattr(node, "value", None) is None:
            continue
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            continue
        stated = isinstance(node, ast.AnnAssign)
        kind = ast.unparse(node.annotation) if stated else type(default).__name__
        comment, line = comments.get(node.end_lineno, ""), node.end_lineno + 1
        while comment.endswith(",") and lines[line - 1 : line] and lines[line - 1][:1] == "#":
            comment, line = f"{comment} {comments[line]}", line + 1
        first = comment.partition(";")[0].strip()
        stated_range = first if _test_of(first)[0] is not None else ""
        found[target.id] = Parameter(target.id, kind, default, stated_range)
    return found


def check_parameters(
    notebook: Path, *points: Mapping, known: Mapping[str, Parameter] | None = None
) -> None:
    """Refuse parameters that a notebook does not have, of another type, or outside their range.

    Args:
        notebook: the file.
        points: values by name, any number of sets of them; what a set leaves out has its default.
        known: of the notebook, where it was read before.

    Raises:
        ValueError: naming the parameter, the value and what is allowed.
    """
    known = declared_parameters(notebook) if known is None else known
    for point in points:
        for name, value in point.items():
            if name not in known:
                raise ValueError(
                    f"{notebook.stem} has no parameter {name!r}; known: {', '.join(known)}"
                )
            if reason := _objection(known[name], value):
                kind = type(value).__name__
                raise ValueError(f"{notebook.stem}: {name} is {short(value)} ({kind}); {reason}")
        values = {name: parameter.default for name, parameter in known.items()} | dict(point)
        for name, other in _as_many(known.values()):
            if name in point or other in point:
                n, wanted = len(values[name]), len(values[other])
                if n != wanted:
                    raise ValueError(
                        f"{notebook.stem}: {name} is {short(values[name])}; {wanted} entries are "
                        f"needed, as many as {other}"
                    )


def typed_values(notebook: Path, values: Mapping, several: bool = False) -> dict[str, Any]:
    """Values by name, each `Text` as the notebook's declaration reads it.

    Args:
        notebook: the file; names that it lacks are read as what they look like.
        values: by name; what is no `Text` stays as it is.
        several: each text holds any number of values, with commas between them.

    Raises:
        ValueError: a text that is no plain value.
    """
    known, read = declared_parameters(notebook), {}
    for name, value in values.items():
        kind = known[name].type if name in known else "object"
        if isinstance(value, Text) and several:
            if value.rstrip().endswith(","):
                raise ValueError(f"{name}={value} ends with a comma; a value is missing there")
            value = value_from_text(name, f"[{value}]", f"list[{kind}]")
        elif isinstance(value, Text):
            value = value_from_text(name, value, kind)
        is_place = name in known and _names_place(known[name].range)
        read[name] = _absolute(value, name) if is_place else value
    return read


def _absolute(value, name: str):
    """A path, or several, as from any folder; kernels are in that of the notebook."""
    if isinstance(value, list | tuple):
        return [_absolute(entry, name) for entry in value]
    return str(path_from(value, name)) if value and isinstance(value, str) else value


def value_from_text(name: str, text: str, kind: str) -> Any:
    """What a text means where a type is declared.

    A plain text for `str` is taken as it is; quoted text is text whatever it looks like; for a list
    the notation of YAML and JSON is read, `[1, 2e-3]`.

    Raises:
        ValueError: brackets or quotes that do not close.
    """
    import yaml

    expected = _parsed(kind)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if not quoted and not text.startswith(("[", "{")):
        return _read(text, expected)
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}={text} is not a plain value ({reason})") from error
    if node.end_mark.index < len(text.rstrip()):
        rest = text[node.end_mark.index :].strip()
        raise ValueError(f"{name}={text} is not a plain value ({rest!r} is left over)")
    return _of_node(node, expected)


def values_from_yaml(text: str, name: str, notebook: Path) -> dict[str, Any]:
    """What a YAML file says of a notebook, each value typed by the notebook's declaration.

    Args:
        text: of the file: values by name, by notebook.
        name: of the notebook in it; nothing is said of one that is not there.
        notebook: the file.

    Raises:
        ValueError: the text is not YAML of that form.
    """
    import yaml

    known, anything = declared_parameters(notebook), Parameter("", "object", None, "")
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        sections = {key.value: node.value for key, node in root.value} if root else {}
        return {
            key.value: _of_node(node, _parsed(known.get(key.value, anything).type))
            for key, node in sections.get(name, [])
        }
    except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"values by notebook and name are needed: {error}") from error


def paper_parameters(notebook: Path) -> dict[str, Any]:
    """The paper-size overrides of a notebook, size included, from `params/paper.yaml` beside it.

    Files are named there from the folder in which `notebooks` lies, and become whole paths here.

    Raises:
        ValueError: the file is not YAML of values by notebook and name.
    """
    file = notebook.parent / "params" / "paper.yaml"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    values = values_from_yaml(text, notebook.stem, notebook)
    known = declared_parameters(notebook)
    for name, value in values.items():
        if value and name in known and _names_place(known[name].range):
            values[name] = str(notebook.parents[1] / value)
    return {"size": "paper"} | values


def _of_node(node, kind: ast.expr) -> Any:
    """A value from a YAML node that was read without YAML's own types."""
    if node.id == "sequence":
        return [_of_node(entry, _entry_of(kind)) for entry in node.value]
    if node.id == "mapping":
        anything = _parsed("object")
        return {key.value: _of_node(entry, anything) for key, entry in node.value}
    return node.value if node.style in ("'", '"') else _read(node.value, kind)


def _read(text: str, kind: ast.expr) -> Any:
    """A plain word as the first type that the declaration has room for, or what it looks like."""
    values = []
    for candidate in READ:
        with suppress(ValueError, KeyError):
            values.append(WORDS[candidate][text.lower()] if candidate in WORDS else candidate(text))
    return next((value for value in values if _fits(value, kind)), values[0])


def _parsed(kind: str) -> ast.expr:
    return ast.parse(kind, mode="eval").body


def _parts(kind: ast.expr) -> tuple[str, list[ast.expr]]:
    """Name of a type and what stands in its brackets; unions are called `Union`."""
    match kind:
        case ast.Subscript(value=head, slice=ast.Tuple(elts=entries)):
            return ast.unparse(head).rpartition(".")[2], entries
        case ast.Subscript(value=head, slice=entry):
            return ast.unparse(head).rpartition(".")[2], [entry]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return "Union", [left, right]
        case ast.Constant(value=str(text)):
            return _parts(_parsed(text))
    return ast.unparse(kind).rpartition(".")[2], []


def _fits_literal(value, entries) -> bool:
    constants = [ast.literal_eval(entry) for entry in entries]
    return any(type(value) is type(constant) and value == constant for constant in constants)


FITS: dict[str, Callable[[Any, list[ast.expr]], bool]] = {
    "int": lambda value, _: type(value) is int,
    "float": lambda value, _: type(value) in (int, float),
    "str": lambda value, _: type(value) is str,
    "bool": lambda value, _: type(value) is bool,
    "None": lambda value, _: value is None,
    "list": lambda value, entry: isinstance(value, list) and all(_fits(v, *entry) for v in value),
    "dict": lambda value, _: isinstance(value, dict),
    "Literal": _fits_literal,
    "Union": lambda value, kinds: any(_fits(value, kind) for kind in kinds),
    "Optional": lambda value, kind: value is None or _fits(value, *kind),
}
FITS |= {"List": FITS["list"], "Dict": FITS["dict"], "NoneType": FITS["None"]}


def _fits(value, kind: ast.expr | None = None) -> bool:
    """Whether a value is of a declared type; of a type that is not known here every value is."""
    name, entries = _parts(kind) if kind is not None else ("object", [])
    return FITS.get(name, lambda *_: True)(value, entries)


def _entry_of(kind: ast.expr) -> ast.expr:
    """The declared type of what a list holds."""
    name, entries = _parts(kind)
    if name in ("Union", "Optional"):
        return next((_entry_of(k) for k in entries if _parts(k)[0] in ("list", "List")), kind)
    return entries[0] if name in ("list", "List") and entries else _parsed("object")


def _objection(parameter: Parameter, value) -> str:
    """What would be allowed, where a value is not; empty where it is."""
    if not _fits(value, _parsed(parameter.type)):
        return f"{parameter.type} is needed"
    if not _is_plain(value):
        return "plain JSON is needed: finite numbers, strings, booleans, and lists of them"
    holds, is_each = _test_of(parameter.range)
    entries = value if is_each else [value]
    if holds is None or (entries and all(map(holds, entries))):
        twice = [v for i, v in enumerate(entries) if v in entries[:i]]
        if not twice or holds is None or "may repeat" in parameter.range:
            return ""
        return f"{twice[0]!r} is there twice; allowed: {parameter.range}, no entry twice"
    if parameter.range == FOLDER:
        return "a folder that is there is needed"
    if FILES.fullmatch(parameter.range):
        return f"a file that is there is needed: {parameter.range}"
    return f"allowed: {parameter.range}" + ("" if entries else ", at least one entry")


def _test_of(text: str) -> tuple[Callable[[Any], bool] | None, bool]:
    """What a range asks of a value, None where the text is no range; and whether of each entry."""
    head = re.split(r", (?=may repeat|as many as)", text.strip())[0]
    is_each = head.startswith("each ")
    head = head.removeprefix("each ")
    if found := INTERVAL.fullmatch(head):
        left, low, high, right = found.groups()
        return lambda v: BELOW[left](float(low), v) and BELOW[right](v, float(high)), is_each
    if found := BOUND.fullmatch(head):
        sign, low = found.groups()
        compare = operator.ge if sign == ">=" else operator.gt
        return lambda v: compare(v, float(low)), is_each
    if found := CHOICE.fullmatch(head):
        return lambda v: v in found[1].split(", "), is_each
    if FILES.fullmatch(head):
        endings = {Path(name).suffix for name in head.split(" or ")}
        return lambda v: v == "" or (Path(v).suffix in endings and Path(v).is_file()), is_each
    if head == FOLDER:
        return lambda v: v == "" or Path(v).is_dir(), is_each
    return None, is_each


def _names_place(text: str) -> bool:
    """Whether a range asks for a file or a folder, which may be named from where one stands."""
    return text == FOLDER or FILES.fullmatch(text) is not None


def _as_many(known: Iterable[Parameter]) -> Iterable[tuple[str, str]]:
    """Pairs of lists that must have one length."""
    for parameter in known:
        if found := re.search(r"as many as (\w+)", parameter.range):
            yield parameter.name, found[1]


def _is_plain(value) -> bool:
    """Whether JSON holds a value as it is, and a double every number in it."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) is int:
        return abs(value) < 10**308
    return value is None or isinstance(value, str | bool)
