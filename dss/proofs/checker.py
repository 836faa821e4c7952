"""A second opinion on certificates: NumPy alone, and nothing shared with what made them.

Between the ends t_0 and t_1 of a piece, at tau = 0 and 1, every value of the network is

    h(tau) = (1 - tau) p + tau q + d,  |d| <= e:

the chord of its values p and q at both ends, and an error.  What a certificate says of a piece is
confirmed when the bound computed in this way is not larger, for the piece or for parts of it.

Rounding: every operation adds at least four times 2^-53 times the number of its steps times the sum
of the absolute values that enter it; exp, log and tanh are taken to be right to 16 units in the
last place.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

CERTIFICATE_FORMAT, STRING_FORMAT = "dss-certificate-1", "dss-string-1"
SLACK = 2.0**-44
TINY = 1e-290

# A piece is halved so many times before its bound counts as not confirmed.
HALVINGS = 6


def check_certificate(path: str | Path, string: str | Path | None = None) -> list[str]:
    """What is wrong with the claims of a certificate.

    They are claims about the networks, the layers and the evaluation set that are in the file.
    That the networks are those of a string is checked with `string`; that layers and samples are
    those of a task, only who knows the task can tell.

    Args:
        path: of a file that `dss.Certificate.save` wrote.
        string: of a file that `dss.String.save` wrote; the certificate must be of that string.

    Returns:
        A reason for each defect; none for a certificate whose claims are confirmed.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not of this format and version at all.
    """
    tables, values, reasons = _read_file(path, "certificate", CERTIFICATE_FORMAT)
    of_string = ({}, {}, [])
    if string is not None:
        of_string = _read_file(string, "string", STRING_FORMAT)
    string_tables, string_values, damage = of_string
    try:
        _check_form(tables, values)
        with np.errstate(all="ignore"):
            reasons += _claims(tables, values)
        if string is not None:
            reasons += damage
            _check_string_form(string_tables, string_values)
            reasons += _differences(tables, values, string_tables, string_values)
    except (LookupError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        reasons.append(f"it is malformed: {error if type(error) is ValueError else repr(error)}")
    return reasons


def _read_file(path: str | Path, what: str, kind: str) -> tuple[dict, dict, list[str]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = Path(path).read_bytes()
    try:
        try:
            arrays = load(content)
        except KeyError as error:
            raise ValueError(f"a table has dtype {error}, which NumPy does not have") from error
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        header = header.get("__metadata__", {})
        if header.get("format") != kind:
            raise ValueError(f"format is {header.get('format')!r}; {kind!r} is known")
        for name in (what, "sha256"):
            _require(name in header, f"{name} is missing in its metadata")
        text, sha256 = header[what], header["sha256"]
        values, digest = json.loads(text), hashlib.sha256(text.encode())
        _require(type(values) is dict, f"its {what} is no names and values")
    except RecursionError as error:
        raise ValueError(f"{path} is not a readable {what} file: it is nested too deep") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable {what} file: {error}") from error
    for name in sorted(arrays):
        digest.update(f"{name} torch.{arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    same = digest.hexdigest() == sha256
    return arrays, values, [] if same else [f"the {what} file was changed after it was written"]


def _differences(
    tables: dict, values: dict, string_tables: dict, string_values: dict
) -> Iterator[str]:
    mine, other = tables["thetas"], string_tables["thetas"]
    if mine.shape != other.shape or mine.dtype != other.dtype:
        yield (
            f"the thetas of the string are {other.dtype} {other.shape}, those of the certificate "
            f"{mine.dtype} {mine.shape}"
        )
    else:
        for k in np.flatnonzero((mine != other).any(axis=1)):
            yield f"network {k} of the certificate is not network {k} of the string"
    string_limit = string_values["slack"] * string_values["L0"]
    if not values["limit"] <= string_limit:
        yield (
            f"the limit is {values['limit']:.17g}, above slack * L0 of the string, "
            f"{string_limit:.17g}"
        )


TABLES = ("thetas", "x", "y", "t_lower", "lower", "upper", "segment", "begin", "end", "bound")
VALUES = ("limit", "metric", "layers", "status", "n_bounded", "trace")
WINDOW = {"shape", "kernel_size", "stride", "padding", "dilation"}
LAYER_SETTINGS = {
    "linear": {"n_in", "bias"},
    "conv2d": {"channels", "bias"} | WINDOW,
    "avgpool2d": WINDOW,
    "maxpool2d": WINDOW,
    "relu": set(),
    "leaky_relu": {"slope"},
    "sigmoid": set(),
    "tanh": set(),
    "flatten": set(),
}


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _require_names(found: dict, names: tuple[str, ...]) -> None:
    for name in names:
        _require(name in found, f"{name} is missing")
    for name in found:
        _require(name in names, f"{name[:80]} is not known")


def _check_string_form(tables: dict, values: dict) -> None:
    """Raise ValueError for what is no string; only what is compared is looked at."""
    thetas = tables.get("thetas")
    _require(thetas is not None and thetas.ndim == 2, "thetas of the string")
    for name in ("L0", "slack"):
        value = values.get(name)
        right = type(value) in (int, float) and 0 < value < np.finfo(float).max
        _require(right, f"{name} of the string is no finite number > 0")


def _check_form(tables: dict, values: dict) -> None:
    """Raise ValueError for tables, samples or layers that are not what a certificate holds."""
    _require_names(tables, TABLES)
    _require_names(values, VALUES)
    _require(type(values["n_bounded"]) is int and values["n_bounded"] >= 0, "n_bounded")
    for name in ("layers", "status", "trace"):
        _require(type(values[name]) is list, f"{name} is no list")
    _require(all(type(v) is str and len(v) < 80 for v in values["status"]), "status is no text")
    for row in values["trace"]:
        right = type(row) is dict and set(row) == {"n_bounded", "lower", "upper"}
        _require(right and all(type(v) in (int, float) for v in row.values()), "a row of trace")
    for name in TABLES:
        _require(tables[name].ndim > 0, f"{name} is one number")
    thetas, x, y = (tables[name] for name in ("thetas", "x", "y"))
    n, limit = len(thetas) - 1, values["limit"]
    _require(thetas.ndim == 2 and thetas.dtype.kind == "f" and n >= 1, "thetas")
    _require(
        type(limit) is float and 0 < limit < np.inf,
        f"limit is {str(limit)[:80]}; a float > 0 is needed",
    )
    for name in ("t_lower", "lower", "upper", "begin", "end", "bound"):
        length = n if name in ("t_lower", "lower", "upper") else len(tables["segment"])
        table = tables[name]
        _require(table.dtype == np.float64 and table.shape == (length,), f"table {name}")
        _require(not np.isnan(table).any(), f"NaN in table {name}")
    segment = tables["segment"]
    _require(segment.dtype == np.int64 and segment.ndim == 1, "table segment")
    _require(set(segment.tolist()) == set(range(n)), "segments without pieces, or the reverse")
    _require(len(values["status"]) == n, f"{len(values['status'])} states of {n} segments")
    _require(x.dtype.kind in "fiu" and x.ndim >= 2 and 0 < len(x) == len(y), "x")
    for name in ("thetas", "x", "y"):
        _require(bool(np.isfinite(tables[name]).all()), f"NaN or inf in {name}")
    metric = values["metric"]
    _require(type(metric) is str and metric in METRICS, f"unknown metric {str(metric)[:80]!r}")
    shape = x.shape[1:]
    for layer in values["layers"]:
        shape = _shape_behind(layer, shape)
    if values["metric"] in ("cross_entropy", "error"):
        _require(len(shape) == 1 and y.ndim == 1 and y.dtype.kind in "iu", "labels y")
        _require(0 <= y.min() and y.max() < shape[0], "a label that is no class")
    else:
        _require(y.dtype.kind == "f" and y.shape[1:] == shape, f"targets y {y.shape}, not {shape}")


def _shape_behind(layer: dict, shape: tuple) -> tuple:
    _require(type(layer) is dict, "a layer of layers is no names and values")
    kind = layer.get("layer")
    _require(type(kind) is str and kind in LAYER_SETTINGS, f"layer {str(kind)[:80]!r} of layers")
    found = set(layer) - ({"start"} if "bias" in layer else set())
    _require(found == {"layer", "n_out"} | LAYER_SETTINGS[kind], f"settings of {kind}")
    right = {"bias": bool, "n_in": int, "channels": int, "start": int}
    for name in right.keys() & layer.keys():
        _require(type(layer[name]) is right[name], f"{name} of {kind}")
    _require(type(layer["n_out"]) is int and 0 < layer["n_out"] < 2**40, f"n_out of {kind}")
    if kind == "leaky_relu":
        slope = layer["slope"]
        _require(type(slope) in (int, float) and 0 <= slope <= 1, f"slope of {kind}")
    if kind == "linear":
        _require(shape == (layer["n_in"],), f"{kind} on inputs of shape {shape}")
        behind = (layer["n_out"],)
    elif "kernel_size" in layer:
        _require(len(shape) == 3 and list(shape) == layer["shape"], f"{kind} on {shape}")
        wanted = {"kernel_size": 1, "stride": 1, "dilation": 1, "padding": 0}
        for name, least in wanted.items():
            pair = layer[name]
            _require(
                type(pair) is list
                and len(pair) == 2
                and all(type(v) is int and v >= least for v in pair),
                name,
            )
        _require(kind != "maxpool2d" or layer["padding"] == [0, 0], "padding of maxpool2d")
        span = [
            d * (k - 1) + 1 for d, k in zip(layer["dilation"], layer["kernel_size"], strict=True)
        ]
        sides = zip(shape[1:], layer["padding"], span, layer["stride"], strict=True)
        sides = [(side + 2 * p - s) // step + 1 for side, p, s, step in sides]
        _require(
            min(sides) >= 1 and all(p < s for p, s in zip(layer["padding"], span, strict=True)),
            kind,
        )
        behind = (layer.get("channels", shape[0]), *sides)
    else:
        behind = (int(np.prod(shape)),) if kind == "flatten" else shape
    _require(layer["n_out"] == np.prod(behind), f"n_out of {kind}")
    return behind


def _claims(tables: dict, values: dict) -> Iterator[str]:
    """Defects of what a certificate says of itself."""
    thetas = tables["thetas"].astype(np.float64)
    x, y, limit = tables["x"].astype(np.float64), tables["y"], values["limit"]
    n, status = len(thetas) - 1, values["status"]
    loss = METRICS[values["metric"]]

    def bound(k: int, t_0: float, t_1: float) -> tuple[float, float]:
        """On piece [t_0, t_1] of segment k; the second, of a point, is not above its loss."""
        size = abs(thetas[k]) + abs(thetas[k + 1])
        ends = [thetas[k] * (1 - t) + thetas[k + 1] * t for t in (t_0, t_1)]
        return loss(*_outputs(values["layers"], ends, size, x), y)

    def confirmed(k: int, t_0: float, t_1: float, stated: float, halvings: int) -> bool:
        if bound(k, t_0, t_1)[0] <= stated:  # never with NaN
            return True
        middle = (t_0 + t_1) / 2
        return halvings > 0 and all(
            confirmed(k, *half, stated, halvings - 1) for half in ((t_0, middle), (middle, t_1))
        )

    for k in range(n):
        rows = np.flatnonzero(tables["segment"] == k)
        begin, end, stated = (tables[name][rows] for name in ("begin", "end", "bound"))
        edges = np.concatenate([[0.0], end]), np.concatenate([begin, [1.0]])
        for here, there in zip(*edges, strict=True):
            if here != there:
                yield f"segment {k}: its pieces leave out or repeat {here:.17g} to {there:.17g}"
        for t_0, t_1, value in zip(begin, end, stated, strict=True):
            if not (0 <= t_0 < t_1 <= 1):
                yield f"segment {k}: [{t_0:.17g}, {t_1:.17g}] is not a piece of [0, 1]"
            elif value < np.inf and not confirmed(k, t_0, t_1, value, HALVINGS):
                yield (
                    f"segment {k}: the bound {value:.17g} on [{t_0:.17g}, {t_1:.17g}] is not "
                    f"confirmed; {bound(k, t_0, t_1)[0]:.6g} was found"
                )
        upper, lower, t = (tables[name][k] for name in ("upper", "lower", "t_lower"))
        if upper != stated.max():
            yield f"segment {k}: upper is {upper:.17g}, which is not the largest of its bounds"
        if not lower <= upper:
            yield f"segment {k}: lower {lower:.17g} is above upper {upper:.17g}"
        if not (0 <= t <= 1 and (lower <= 0 or bound(k, t, t)[1] >= lower)):
            yield f"segment {k}: that the metric is {lower:.17g} at t = {t:.17g} is not confirmed"
        if status[k] == "proved" and not upper <= limit:
            yield f"segment {k} is called proved, with a bound of {upper:.17g} above {limit:.17g}"
        elif status[k] == "refuted" and not bound(k, t, t)[1] > limit:
            yield f"segment {k} is called refuted, but is not above {limit:.17g} at t = {t:.17g}"
        elif status[k] not in ("proved", "refuted", "undecided"):
            yield f"segment {k} is called {status[k]!r}, which means nothing"


def _outputs(layers: list[dict], ends: list, size: np.ndarray, x: np.ndarray):
    """The chord p, q and the error e of the outputs, each `(outputs, B)`."""
    p = q = x.reshape(len(x), -1).T
    e, start, taken = np.zeros_like(p), 0, np.zeros(len(size), int)
    for layer in layers:
        kind = layer["layer"]
        if kind in ("linear", "conv2d"):
            patches = _patches(layer, len(p)) if kind == "conv2d" else np.arange(len(p))[:, None]
            n = layer["channels"] if kind == "conv2d" else layer["n_out"]
            n_weights, n_bias = n * len(patches), n if layer["bias"] else 0
            start = layer.get("start", start)  # where layers stand in another order in theta
            part = (
                slice(start, start + n_weights),
                slice(start + n_weights, start + n_weights + n_bias),
            )
            start += n_weights + n_bias
            if not 0 <= part[0].start <= start <= len(size):
                raise ValueError(
                    f"the layers have parameters up to {start}, and the networks {len(size)}"
                )
            taken[part[0].start : start] += 1
            p, q, e = _affine(n, part, ends, size, patches, p, q, e)
        elif kind in ("avgpool2d", "maxpool2d"):
            channels, patches = layer["shape"][0], _patches(layer, len(p))
            patches = patches.reshape(channels, -1, patches.shape[1]).transpose(1, 0, 2)
            p, q, e = ENCLOSED_POOLINGS[kind](
                *(_take(v, patches.reshape(len(patches), -1)) for v in (p, q, e))
            )
        elif kind != "flatten":
            below = (layer["slope"],) if kind == "leaky_relu" else ()
            p, q, e = ENCLOSED_ACTIVATIONS[kind](p, q, e, *below)
    if (taken != 1).any():
        n = int((taken > 0).sum())
        raise ValueError(f"the layers have {n} parameters, and the networks {len(size)}")
    return p, q, e


def _patches(layer: dict, n: int) -> np.ndarray:
    """Which features each output of a window sees, `(values, outputs)`; n stands for padding."""
    channels, height, width = layer["shape"]
    image = np.arange(n).reshape(channels, height, width)
    (up, left), (rows, columns) = layer["padding"], layer["kernel_size"]
    image = np.pad(image, ((0, 0), (up, up), (left, left)), constant_values=n)
    (down, right), (step, stride) = layer["dilation"], layer["stride"]
    span = (rows - 1) * down + 1, (columns - 1) * right + 1
    seen = sliding_window_view(image, span, axis=(1, 2))[:, ::step, ::stride, ::down, ::right]
    return seen.transpose(0, 3, 4, 1, 2).reshape(channels * rows * columns, -1)


def _take(h: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """`(values, outputs, B)`."""
    return np.concatenate([h, np.zeros((1, h.shape[1]))])[patches]


def _affine(n: int, part: tuple, ends: list, size: np.ndarray, patches, p, q, e):
    weight, bias = ([v[s] for v in (*ends, size)] for s in part)
    w_0, w_1, w_size = (v.reshape(n, len(patches)) for v in weight)
    b_0, b_1, b_size = (v.reshape(-1, 1) if len(v) else np.zeros((n, 1)) for v in bias)
    p, q, e = (_take(v, patches).reshape(len(patches), -1) for v in (p, q, e))
    enters = w_size @ (abs(p) + abs(q) + e) + b_size
    # (1 - tau) w_0 + tau w_1 times (1 - tau) p + tau q is the chord of w_0 p and w_1 q, less
    # tau (1 - tau), which is between 0 and 1/4, of this:
    bend = (w_1 - w_0) @ (q - p) / 8
    out_e = np.maximum(abs(w_0), abs(w_1)) @ e + abs(bend)
    out_e += (len(patches) + 64) * 2.0**-51 * enters + TINY
    out = (w_0 @ p + b_0 - bend, w_1 @ q + b_1 - bend, out_e)
    return tuple(v.reshape(n * patches.shape[1], -1) for v in out)


def _range(p, q, e):
    wide = e + SLACK * (abs(p) + abs(q) + e)
    return np.minimum(p, q) - wide, np.maximum(p, q) + wide


def _relu(p, q, e, below=0.0):
    low, high = _range(p, q, e)
    share = np.nan_to_num(np.clip(high / (high - low), 0, 1))
    slope = np.clip(below + (1 - below) * share, below, 1)
    lift = np.maximum(0, np.maximum((below - slope) * low, (1 - slope) * high)) / 2
    out = slope * p + lift, slope * q + lift
    return *out, slope * e + lift + SLACK * (slope * (abs(p) + abs(q) + e) + lift)


def _smooth(function, derivative):
    def enclose(p, q, e):
        low, high = (function(v) for v in _range(p, q, e))
        slope = np.maximum(0, np.minimum(derivative(low), derivative(high)) - SLACK)
        middle, swing = (low + high) / 2, slope * (q - p) / 2
        rest = np.maximum(0, (high - low) / 2 - abs(swing))
        return middle - swing, middle + swing, rest + SLACK * (1 + slope * (abs(p) + abs(q) + e))

    return enclose


def _mean(p, q, e):
    size = (abs(p) + abs(q) + e).mean(axis=0)
    return p.mean(axis=0), q.mean(axis=0), e.mean(axis=0) + (1 + len(p)) * SLACK * size + TINY


def _largest(p, q, e):
    size = (abs(p) + abs(q) + e).max(axis=0)
    best = np.argmax(p + q, axis=0)[None]
    top_p, top_q, top_e = (np.take_along_axis(v, best, 0) for v in (p, q, e))
    above = (np.maximum(p - top_p, q - top_q) + e).max(axis=0)
    shift = (above - top_e[0]) / 2
    return top_p[0] + shift, top_q[0] + shift, (above + top_e[0]) / 2 + SLACK * size


ENCLOSED_ACTIVATIONS = {
    "relu": _relu,
    "leaky_relu": _relu,
    "sigmoid": _smooth(lambda v: 0.5 * (1 + np.tanh(v / 2)), lambda f: f * (1 - f)),
    "tanh": _smooth(np.tanh, lambda f: 1 - f * f),
}
ENCLOSED_POOLINGS = {"avgpool2d": _mean, "maxpool2d": _largest}


def _sure(above: float, below: float, *outputs: np.ndarray) -> tuple[float, float]:
    """Nothing is known of a loss whose outputs overflowed, whatever a comparison with NaN says."""
    known = all(np.isfinite(v).all() for v in outputs) and not np.isnan(above)
    return (above, min(below, np.finfo(float).max)) if known else (np.inf, 0.0)


def _residual(loss):
    def metric(p, q, e, y):
        y = y.astype(np.float64).reshape(len(y), -1).T
        e = e + SLACK * (abs(p) + abs(q) + abs(y) + e)
        above = [loss(abs(v - y) + e).mean() for v in (p, q)]
        below = loss(np.maximum(abs(p - y) - e, 0)).mean()
        rounding = (64 + p.size) * 2.0**-50
        return _sure(max(above) * (1 + rounding) + TINY, below * (1 - rounding), p, q, e)

    return metric


def _over_label(z, e, y, sign):
    """How far each output can (sign 1) or must (-1) lie above the label's; -inf at the label."""
    columns = np.arange(len(y))
    e = e + SLACK * (abs(z) + e)
    over = z - z[y, columns] + sign * (e + e[y, columns]) * (1 + SLACK)
    over[y, columns] = -np.inf
    return over


def _cross_entropy(p, q, e, y):
    def mean(z, sign):
        over = _over_label(z, e, y, sign)
        top = np.maximum(over.max(axis=0), 0)
        loss = top + np.log(np.exp(-top) + np.exp(over - top).sum(axis=0))
        return (loss + sign * (64 + len(z)) * 2.0**-50 * (1 + loss)).mean()

    rounding = (64 + len(y)) * 2.0**-50
    return _sure(
        max(mean(p, 1), mean(q, 1)) * (1 + rounding), mean(p, -1) * (1 - rounding), p, q, e
    )


def _error(p, q, e, y):
    above = np.maximum(*(_over_label(v, e, y, 1).max(axis=0) for v in (p, q))) >= 0
    below = _over_label(p, e, y, -1).max(axis=0) > 0
    return _sure(above.mean() * (1 + SLACK), below.mean() * (1 - SLACK), p, q, e)


# From the chord of the outputs to an upper bound of the metric, and one that is not above it at p.
METRICS = {
    "mse": _residual(np.square),
    "mae": _residual(lambda v: v),
    "huber": _residual(lambda v: np.minimum(v, 0.1) * (v - np.minimum(v, 0.1) / 2)),
    "cross_entropy": _cross_entropy,
    "error": _error,
}
