"""What arguments must be: refused by name, with the value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

T_RULES = ("max", "coarse", "grid", "midpoint")


def lookup(table: Mapping, key, what: str):
    """`table[key]`, or a ValueError that lists the known keys."""
    if key not in table:
        known = ", ".join(repr(k) for k in table)
        raise ValueError(f"unknown {what} {key!r}; known: {known}")
    return table[key]


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
    if finite and not theta.isfinite().all():
        bad = (~theta.isfinite()).nonzero()
        raise ValueError(
            f"{name} holds {len(bad)} values that are NaN or inf, the first at index "
            f"{tuple(bad[0].tolist())}; every value must be finite"
        )
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
    import torch

    value = torch.as_tensor(value, dtype=torch.float64).cpu()
    if value.shape not in ((), (n_pairs,)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; one value or ({n_pairs},)")
    return value.expand(n_pairs)


def check_rule(t_star: str) -> None:
    """Raise ValueError for an unknown rule for t*."""
    if t_star not in T_RULES:
        raise ValueError(f"unknown t_star {t_star!r}; known: {', '.join(map(repr, T_RULES))}")


def check_grid(n_t: int) -> None:
    """Raise ValueError for fewer than three grid points, or a number that is not whole."""
    if n_t != int(n_t):
        raise ValueError(f"n_t is {n_t}; a whole number of grid points is needed")
    if n_t < 3:
        raise ValueError(f"n_t is {n_t}; at least 3 grid points are needed (both ends, a middle)")


def check_search(L0: Tensor, alpha: Tensor, max_depth, n_t, t_star, slack, insert_first) -> None:
    """Raise ValueError for an argument of a search that is out of range; L0, alpha `(M,)`."""
    if not bool(((L0 > 0) & L0.isfinite()).all()):
        raise ValueError(f"L0 is {L0[~(L0 > 0)].tolist() or L0.tolist()}; finite and > 0 is needed")
    if not bool(((alpha > 0) & (alpha <= 1)).all()):
        bad = alpha[~((alpha > 0) & (alpha <= 1))][0]
        raise ValueError(f"alpha is {float(bad)}; 0 < alpha <= 1 is needed")
    if max_depth < 0 or max_depth != int(max_depth):
        raise ValueError(f"max_depth is {max_depth}; a whole number >= 0 is needed")
    if max_depth > 40:
        raise ValueError(f"max_depth is {max_depth}; 40 at most (2^40 segments a pair)")
    if insert_first and max_depth < 1:
        raise ValueError("max_depth is 0; insert_first=True needs a depth of at least 1")
    check_grid(n_t)
    check_rule(t_star)
    if not slack >= 1:
        raise ValueError(f"slack is {slack}; it must be >= 1")
