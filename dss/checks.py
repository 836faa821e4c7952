"""What arguments must be: refused by name, with the value and what is allowed."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

T_RULES = ("max", "coarse", "grid", "midpoint")

# Grid points on one segment, at most.
MOST_POINTS = 1_000_000


def lookup(table: Mapping, key, what: str):
    """`table[key]`, or a ValueError that lists the known keys."""
    if not isinstance(key, str | None) or key not in table:
        known = ", ".join(repr(k) for k in table)
        raise ValueError(f"unknown {what} {short(key)}; known: {known}")
    return table[key]


def short(value) -> str:
    """A value as text for a message, in a line, whatever it is."""
    if hasattr(value, "dtype") and getattr(value, "ndim", 0):
        return f"a {type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    text = reprlib.Repr()
    text.maxstring = text.maxother = text.maxlong = 80
    return text.repr(value)


def _plain(value):
    """A number of NumPy or torch as one of Python."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def check_whole(value, name: str, least: int, most: int | None = None) -> int:
    """`value` as an int; 1e4 and numbers of NumPy and torch are as good as 10_000.

    Raises:
        TypeError: no number, or True or False.
        ValueError: not whole, or out of range.
    """
    needed = (
        f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most:,}"
    )
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name} is {short(value)}; {needed} is needed")
    is_right = least <= plain < math.inf and plain == int(plain)
    if not is_right or (most is not None and plain > most):
        raise ValueError(f"{name} is {short(plain)}; {needed} is needed")
    return int(plain)


def check_counts(**counts) -> None:
    """Raise TypeError or ValueError for what is neither None nor a whole number >= 1."""
    for name, value in counts.items():
        if value is not None:
            check_whole(value, name, 1)


def check_assertions(where: str) -> None:
    """Raise RuntimeError where Python runs without assertions (`-O`, PYTHONOPTIMIZE)."""
    if not __debug__:
        raise RuntimeError(
            f"assertions are off in {where}, so that no check in it would be one; start it without "
            "-O and without PYTHONOPTIMIZE"
        )


def check_number(value, name: str, allowed: Callable[[float], bool], needed: str) -> float:
    """`value` as a float.

    Args:
        value: to be checked.
        name: how the message calls it.
        allowed: says which numbers are right.
        needed: says it to the reader.

    Raises:
        TypeError: no number, or True or False.
        ValueError: a number that is not allowed.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name} is {short(value)}; {needed} is needed")
    try:
        number = float(plain)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not allowed(number):
        raise ValueError(f"{name} is {short(plain)}; {needed} is needed")
    return number


def check_flag(value, name: str) -> bool:
    """`value` as a bool; TypeError for what is neither True nor False."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name} is {short(value)}; True or False is needed")
    return plain


# What a value must be, and how the reader is told.
Rule = tuple[Callable[[object], bool], str]


def is_whole(value) -> bool:
    """Whether a value of a file is a whole number >= 0 that tables can hold."""
    return type(value) is int and 0 <= value < 2**63


def is_number(value) -> bool:
    """Whether a value of a file is a number, NaN and inf included."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


WHOLE: Rule = (is_whole, "a whole number >= 0")
NUMBER: Rule = (is_number, "a number")
TEXT: Rule = (lambda value: isinstance(value, str), "text")
POSITIVE: Rule = (lambda value: is_number(value) and 0 < value < math.inf, "a finite number > 0")


def one_of(known: Collection[str]) -> Rule:
    """A rule for names."""
    return lambda v: isinstance(v, str) and v in known, f"one of {', '.join(known)}"


def check_fields(found: Mapping, rules: Mapping[str, Rule], what: str = "") -> None:
    """Raise ValueError, with its name, for a field that is missing, unknown or breaks its rule.

    Args:
        found: fields of a file, by name.
        rules: what each of them must be.
        what: they are fields of, for the message.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"{what} is {short(found)}; names and values are needed")
    what = what and f"{what}: "
    for name, (is_right, needed) in rules.items():
        if name not in found:
            raise ValueError(f"{what}{name} is missing")
        if not is_right(found[name]):
            raise ValueError(f"{what}{name} is {short(found[name])}; {needed} is needed")
    for name in found:
        if name not in rules:
            raise ValueError(f"{what}{short(name)} is not known")


def check_rows(rows, rules: Mapping[str, Rule], what: str) -> None:
    """Raise ValueError unless `rows` are a list of fields, all of them as the rules say."""
    if not isinstance(rows, list):
        raise ValueError(f"{what} is {short(rows)}; a list is needed")
    for i, row in enumerate(rows):
        check_fields(row, rules, f"{what}[{i}]")


def is_list_of(n: int, rule: Rule) -> Rule:
    """A rule for a list of `n` values, each as the rule says."""
    is_right, needed = rule
    fits = lambda v: isinstance(v, list) and len(v) == n and all(map(is_right, v))  # noqa: E731
    return fits, f"a list of {n}, each {needed},"


def table(dtype: str, *shape: int | None, allowed: Callable | None = None, needed="") -> Rule:
    """A rule for a tensor: its dtype, its shape (None: any size), and its values.

    Args:
        dtype: `"int64"`, say; `"float"` for float16, bfloat16, float32 and float64.
        shape: of the tensor.
        allowed: says of the tensor, which is right but for its values, which of them are right.
        needed: says it to the reader.
    """
    floats = ("float16", "bfloat16", "float32", "float64")
    dtypes = [f"torch.{name}" for name in (floats if dtype == "float" else (dtype,))]

    def is_right(value) -> bool:
        got = getattr(value, "shape", ())
        fits = len(got) == len(shape) and all(
            a in (None, b) for a, b in zip(shape, got, strict=True)
        )
        fits = fits and str(getattr(value, "dtype", "")) in dtypes
        return fits and (allowed is None or bool(allowed(value).all()))

    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return is_right, f"a tensor of {dtype}, shape ({sizes}){needed and f', {needed},'}"


def check_generator(generator) -> Generator:
    """The generator of a run; a new one with seed 0 for None.

    Raises:
        TypeError: no generator, a seed say.
        ValueError: one that draws on another device.
    """
    import torch

    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is {short(generator)}; a torch.Generator is needed, for a seed "
            "torch.Generator().manual_seed(seed)"
        )
    if generator.device.type != "cpu":
        raise ValueError(f"generator draws on {generator.device}; one of the CPU is needed")
    return generator


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise ValueError for NaN and inf, which says how many there are and where the first is."""
    if not tensor.isfinite().all():
        bad = (~tensor.isfinite()).nonzero()
        raise ValueError(
            f"{name} holds {len(bad)} values that are NaN or inf, the first at index "
            f"{tuple(bad[0].tolist())}; every value must be finite"
        )


def check_sizes(module: Module) -> None:
    """Raise ValueError for a lazy layer that has not seen a batch yet."""
    from torch.nn.parameter import is_lazy

    for name, layer in module.named_modules():
        members = [*layer._parameters.items(), *layer._buffers.items()]
        for member, value in members:
            if value is not None and is_lazy(value):
                raise ValueError(
                    f"{member} of layer {name!r} ({type(layer).__name__}) has no size yet; run one "
                    "batch through the network first: module(x[:1])"
                )


def check_theta(theta: Tensor, name: str, shape: tuple = (...,), finite: bool = False) -> Tensor:
    """Return `theta` when it is a floating-point tensor of `shape`, else say what is wrong with it.

    Args:
        theta: the tensor to check.
        name: how the message calls it.
        shape: expected shape, `None` for any size; a leading `...` for any leading dimensions.
        finite: also refuse NaN and inf.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: wrong shape, or a value that is not finite.
    """
    from torch import Tensor

    if not isinstance(theta, Tensor):
        raise TypeError(f"{name} is a {type(theta).__name__}; a floating-point tensor is needed")
    if not theta.is_floating_point():
        raise TypeError(
            f"{name} has dtype {theta.dtype}; floating point is needed: pass {name}.float()"
        )
    any_lead = bool(shape) and shape[0] is ...
    wanted = shape[1:] if any_lead else shape
    got = theta.shape[theta.dim() - len(wanted) :] if any_lead else theta.shape
    if len(got) != len(wanted) or any(w not in (None, g) for g, w in zip(got, wanted, strict=True)):
        text = ", ".join("..." if s is ... else "any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name} has shape {tuple(theta.shape)}; ({text}) is needed")
    if finite:
        check_finite(theta, name)
    return theta


def check_alike(theta_1: Tensor, theta_2: Tensor) -> None:
    """Raise ValueError unless two thetas have one shape and one dtype."""
    if theta_1.shape != theta_2.shape or theta_1.dtype != theta_2.dtype:
        raise ValueError(
            f"theta_1 is {theta_1.dtype} of shape {tuple(theta_1.shape)} and theta_2 "
            f"{theta_2.dtype} of shape {tuple(theta_2.shape)}; both must be the same"
        )


def check_segments(theta_1: Tensor, theta_2: Tensor, n_params: int) -> None:
    """Refuse what are not the ends of one segment, `(P,)`, or of several, `(S, P)`.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: another shape, unlike ends, NaN or inf.
    """
    from torch import Tensor

    is_stack = isinstance(theta_1, Tensor) and theta_1.dim() > 1
    shape = (None, n_params) if is_stack else (n_params,)
    check_theta(theta_1, "theta_1", shape, finite=True)
    check_theta(theta_2, "theta_2", shape, finite=True)
    check_alike(theta_1, theta_2)


def check_pairs(theta_1: Tensor, theta_2: Tensor, n_params: int) -> None:
    """Refuse what are not the networks of at least one pair, `(M, P)` each.

    Raises:
        TypeError, ValueError: as in `check_segments`.
    """
    for name, theta in (("theta_1", theta_1), ("theta_2", theta_2)):
        check_theta(theta, name, (None, n_params), finite=True)
    check_alike(theta_1, theta_2)
    if len(theta_1) == 0:
        raise ValueError("there is no pair: theta_1 has 0 rows; at least 1 is needed")


def per_pair(value: float | Tensor, n_pairs: int, name: str) -> Tensor:
    """`(M,)` float64 on the CPU from one value or from one for each of M pairs."""
    value = numbers_of(value, name)
    if value.shape not in ((), (n_pairs,)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; one value or ({n_pairs},)")
    return value.expand(n_pairs)


def numbers_of(value, name: str) -> Tensor:
    """One number or several as float64 on the CPU; TypeError for what is not real numbers."""
    import torch

    try:
        numbers = torch.as_tensor(value)
        if not isinstance(value, torch.Tensor):  # from Python's float, not by way of float32
            numbers = torch.as_tensor(value, dtype=torch.float64)
        is_right = not torch.as_tensor(value).is_complex() and not _holds_flags(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        is_right = False
    if not is_right:
        raise TypeError(f"{name} is {short(value)}; a number or several are needed")
    return numbers.to("cpu", torch.float64)


def _holds_flags(value) -> bool:
    """Whether True or False is among numbers, which would count as 1 and 0."""
    if isinstance(value, list | tuple):
        return any(map(_holds_flags, value))
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def thresholds_of(L0) -> Tensor:
    """`(T,)` float64 from one threshold or several.

    Raises:
        TypeError: not numbers.
        ValueError: none, another shape, or one that is not finite and > 0.
    """
    import torch

    thresholds = torch.atleast_1d(numbers_of(L0, "L0"))
    if thresholds.dim() != 1 or len(thresholds) == 0:
        raise ValueError(f"L0 has shape {tuple(thresholds.shape)}; at least one threshold, (T,)")
    check_L0(thresholds)
    return thresholds


def check_L0(L0: Tensor) -> None:
    """Raise ValueError for a threshold that is not finite and > 0."""
    if not bool(((L0 > 0) & L0.isfinite()).all()):
        raise ValueError(f"L0 is {L0[~(L0 > 0)].tolist() or L0.tolist()}; finite and > 0 is needed")


def check_rule(t_star: str) -> None:
    """Raise ValueError for an unknown rule for t*."""
    if not isinstance(t_star, str) or t_star not in T_RULES:
        raise ValueError(f"unknown t_star {short(t_star)}; known: {', '.join(map(repr, T_RULES))}")


def check_grid(n_t: int) -> int:
    """`n_t` as an int; TypeError, ValueError for fewer than three grid points, or too many."""
    try:
        return check_whole(n_t, "n_t", 3, MOST_POINTS)
    except ValueError as error:
        raise ValueError(f"{error} (at least 3 grid points: both ends, a middle)") from None


def check_search(L0: Tensor, alpha: Tensor, max_depth, n_t, t_star, slack, insert_first) -> None:
    """Raise TypeError or ValueError for a bad argument of a search; L0, alpha `(M,)`."""
    check_L0(L0)
    if not bool(((alpha > 0) & (alpha <= 1)).all()):
        bad = alpha[~((alpha > 0) & (alpha <= 1))][0]
        raise ValueError(f"alpha is {float(bad)}; 0 < alpha <= 1 is needed")
    check_flag(insert_first, "insert_first")
    depth = check_whole(max_depth, "max_depth", 0)
    if depth > 40:
        raise ValueError(f"max_depth is {max_depth}; 40 at most (2^40 segments a pair)")
    if insert_first and depth < 1:
        raise ValueError("max_depth is 0; insert_first=True needs a depth of at least 1")
    check_grid(n_t)
    check_rule(t_star)
    check_number(slack, "slack", lambda v: 1 <= v < math.inf, "a finite number >= 1")
