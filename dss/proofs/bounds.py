"""Rigorous bounds of a network's metric on pieces of a segment, in float64.

On a segment every weight is linear in t.  On a piece t = c + r s, s in [-1, 1], every value of the
network is enclosed by a function that is affine in s, and an error:

    h(s) = a + b s + d,  |d| <= e.

A linear layer multiplies (W_c + s W_d) (a + b s + d); its term in s^2, between 0 and 1, goes half
into a and half into e.  Activations are enclosed between two parallel lines over the range of
their argument.  Losses that are convex in the outputs are largest at an end of the piece, where
only the errors have to be taken at their worst; that keeps what samples have in common.  All this
is exact to second order in r but for ReLUs that change sign within the piece, and windows whose
largest value changes.  With `form="interval"` b is moved into e after every layer: plain interval
arithmetic.

Rounding.  With u = 2^-53, a sum of n products in any order, fused or not, differs from the exact
one by at most n u / (1 - n u) times the sum of the absolute products, and by `UNDERFLOW` where
products underflow.  Every operation below adds such a bound to e, at least twice as large as the
sum of what its own steps can amount to.  exp, log, sigmoid and tanh are taken to be right to 16 u
(SLEEF and libm state 1 to 4); this is the one thing that is assumed.  Nothing is multiplied but by
matrix products and elementwise, so that no fast algorithm of another error (Winograd, Strassen,
TF32) can be chosen.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dss.networks.chain import chained_layers, places_of_parameters
from dss.networks.losses import LOSSES

U = 2.0**-53
UNDERFLOW = 1e-290
FORMS = ("affine", "interval")


class Enclosure(NamedTuple):
    """h(s) = a + b s + d, |d| <= e, for every s in [-1, 1]; each `(I, features, B)`."""

    a: Tensor
    b: Tensor
    e: Tensor

    def size(self) -> Tensor:
        """Largest absolute value, up to rounding."""
        return self.a.abs().add_(self.b.abs()).add_(self.e)


class Line(NamedTuple):
    """A value of S segments as a function of t, `begin + t * slope`; `(S, rows, columns)`."""

    begin: Tensor
    slope: Tensor

    def on(self, segment: Tensor, center: Tensor, radius: Tensor) -> "Line":
        """The same as a function of s, on pieces t = center + s * radius, each `(I,)`."""
        c, r = (v[:, None, None] for v in (center, radius))
        slope = self.slope[segment]
        return Line(torch.addcmul(self.begin[segment], c, slope), slope * r)


def records_of_layers(module: nn.Module, x: Tensor) -> list[dict]:
    """What each layer of a network does, in plain values that can be written to a file.

    Args:
        module: the network, which calls one layer after the other.
        x: `(B, ...)`, its inputs.

    Returns:
        In the order of their use.  `start` is where in theta a layer's parameters begin, where that
        is not where those of the layer before end.

    Raises:
        ValueError: a layer, or a setting of one, for which no bounds are known; it is named.
            Dropout that does not act is passed over, as `nn.Identity` is.
    """
    try:
        layers = chained_layers(module)
        places = places_of_parameters(module, layers)
    except ValueError as error:
        raise ValueError(f"no bounds are known for this network: {error}; {KNOWN}") from error
    shape, records = tuple(x.shape[1:]), []
    for layer in layers:
        if _is_passed_over(layer):
            records.append(None)
            continue
        if type(layer) not in LAYERS:
            raise ValueError(f"no bounds are known for a layer {layer}; {KNOWN}")
        name, settings = LAYERS[type(layer)]
        values = settings(layer, shape)
        if "n_in" in values and shape != (values["n_in"],):
            _check_same(module, layers, x)
        shape = tuple(layer(torch.zeros(1, *shape).to(next(module.parameters()))).shape[1:])
        records.append({"layer": name, **values, "n_out": math.prod(shape)})
    _check_same(module, layers, x)
    end = 0
    for layer, record, place in zip(layers, records, places, strict=True):
        if record and "bias" in record:
            record |= {"start": place} if place != end else {}
            end = place + sum(p.numel() for p in layer.parameters())
    return [record for record in records if record]


def _is_passed_over(layer: nn.Module) -> bool:
    is_dropout = isinstance(layer, nn.modules.dropout._DropoutNd)
    return type(layer) is nn.Identity or (is_dropout and not (layer.training and layer.p))


def _check_same(module: nn.Module, layers: list[nn.Module], x: Tensor) -> None:
    """Raise ValueError unless layers, one after the other, give what the network gives.

    They do not where a `view` that was taken for flattening mixes samples.
    """
    x = x[:2].to(next(module.parameters()).dtype)
    try:
        with torch.no_grad():
            is_same = torch.allclose(nn.Sequential(*layers)(x), module(x), equal_nan=True)
    except RuntimeError:
        is_same = False
    if not is_same:
        raise ValueError("no bounds are known for this network: a view in it mixes samples")


def _linear(layer: nn.Linear, shape) -> dict:
    if len(shape) != 1:
        raise ValueError(f"no bounds are known for Linear on inputs of shape {shape}; flatten them")
    return {"n_in": layer.in_features, "bias": layer.bias is not None}


def _window(layer, shape) -> dict:
    """Settings that a convolution and the poolings share."""
    if len(shape) != 3:
        raise ValueError(f"no bounds are known for {layer} on inputs of shape {shape}")
    if isinstance(getattr(layer, "padding", 0), str):
        raise ValueError(f"no bounds are known for {layer}; padding in numbers is needed")
    needed = {"groups": 1, "padding_mode": "zeros", "ceil_mode": False, "return_indices": False}
    needed |= {"count_include_pad": True, "divisor_override": None}
    for name, value in needed.items():
        if getattr(layer, name, value) != value:
            raise ValueError(f"no bounds are known for {layer}; {name}={value} is needed")
    window = {
        name: _pair(getattr(layer, name, 1))
        for name in ("kernel_size", "stride", "padding", "dilation")
    }
    if isinstance(layer, nn.MaxPool2d) and any(window["padding"]):
        raise ValueError(f"no bounds are known for {layer}; padding=0 is needed")
    return {"shape": list(shape), **window}


def _pair(value: int | tuple[int, int]) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value, value]


def _conv2d(layer: nn.Conv2d, shape) -> dict:
    return {"channels": layer.out_channels, "bias": layer.bias is not None, **_window(layer, shape)}


def _flatten(layer: nn.Flatten, shape) -> dict:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ValueError(f"no bounds are known for {layer}; start_dim=1, end_dim=-1 is needed")
    return {}


def _slope(layer: nn.LeakyReLU, shape) -> dict:
    if not 0 <= layer.negative_slope <= 1:
        raise ValueError(f"no bounds are known for {layer}; a negative_slope in [0, 1] is needed")
    return {"slope": float(layer.negative_slope)}


# What a layer is called in a certificate, and its settings given its input's shape.
LAYERS: dict[type, tuple[str, Callable]] = {
    nn.Linear: ("linear", _linear),
    nn.Conv2d: ("conv2d", _conv2d),
    nn.ReLU: ("relu", lambda layer, shape: {}),
    nn.LeakyReLU: ("leaky_relu", _slope),
    nn.Sigmoid: ("sigmoid", lambda layer, shape: {}),
    nn.Tanh: ("tanh", lambda layer, shape: {}),
    nn.Flatten: ("flatten", _flatten),
    nn.AvgPool2d: ("avgpool2d", _window),
    nn.MaxPool2d: ("maxpool2d", _window),
}
KNOWN = f"known are chains of {', '.join(kind.__name__ for kind in LAYERS)}"


def _windows(layer: dict, device: torch.device) -> Tensor:
    """Features that each output sees, `(values in a window, outputs)`; 0 is padding."""
    channels, height, width = layer["shape"]
    index = torch.arange(1, channels * height * width + 1, dtype=torch.float64)
    keywords = {name: layer[name] for name in ("dilation", "padding", "stride")}
    seen = F.unfold(index.view(1, channels, height, width), layer["kernel_size"], **keywords)
    seen = seen[0].long().to(device)
    if layer["layer"] == "conv2d":
        return seen
    return seen.unflatten(0, (channels, -1)).transpose(0, 1).flatten(1)  # each channel for itself


def _see(h: Tensor, index: Tensor) -> Tensor:
    """`(I, features, B)` seen through windows: `(I, *index.shape, B)`."""
    return F.pad(h, (0, 0, 1, 0)).index_select(1, index.reshape(-1)).unflatten(1, index.shape)


def values_in(layer: dict) -> int:
    """How many values enter a layer, each as often as its outputs see it."""
    if "kernel_size" not in layer:
        return layer.get("n_in", layer["n_out"])
    seen = layer["shape"][0] * math.prod(layer["kernel_size"])
    return seen * layer["n_out"] // layer.get("channels", layer["shape"][0])


def _parameters(layer: dict, theta_1: Tensor, theta_2: Tensor) -> tuple[Line, Line, Tensor]:
    """Weights `(S, n, n_in)`, biases `(S, n, 1)`, and what rounding amounts to in each row.

    The last, `(S, n, 1)`, is for inputs of size 1; see `linear`.
    """
    n = layer.get("channels", layer["n_out"])
    ends = []
    for theta in (theta_1, theta_2):
        weight, bias = theta[:, : n * layer["n_in"]], theta[:, n * layer["n_in"] :]
        bias = bias if layer["bias"] else theta.new_zeros(len(theta), n)
        ends.append((weight.unflatten(1, (n, -1)), bias.unsqueeze(2)))
    (weight_1, bias_1), (weight_2, bias_2) = ends
    rows = sum(v.abs().sum(dim=2, keepdim=True) for v in (weight_1, weight_2, bias_1, bias_2))
    rounding = 4 * (layer["n_in"] + 16) * U * rows
    return Line(weight_1, weight_2 - weight_1), Line(bias_1, bias_2 - bias_1), rounding


def _inputs(layer: dict, h: Tensor) -> Tensor:
    """Inputs `(I, n_in, outputs * B)` of a linear layer, or of a convolution as one."""
    return h if layer["layer"] == "linear" else _see(h, layer["index"]).flatten(2)


def _repeat(layer: dict, rows: Tensor) -> Tensor:
    """Rows of channels `(I, n, 1)` as rows of outputs `(I, n_out, 1)`."""
    return rows.repeat_interleave(layer["n_out"] // rows.shape[1], dim=1)


def linear(layer: dict, weight: Line, bias: Line, rounding: Tensor, h: Enclosure) -> Enclosure:
    """(W_c + s W_d) h + (b_c + s b_d).

    Weights that underflow are wrong by less than `UNDERFLOW`, whatever they are multiplied by.
    Rounding: W a, W b and |W| e are sums of n products whose weights, interpolated, are right to
    4 u (|theta_1| + |theta_2|); at most 8 operations follow.  Together that is at most 2 (n + 12) u
    times the row's sum of |theta_1| + |theta_2| times the largest |a| + |b| + e.
    """
    largest = h.size().amax(dim=1, keepdim=True).clamp_(min=1)
    a, b, e = (_inputs(layer, v) for v in h)
    cross = (weight.slope @ b).div_(2)
    out_a = (weight.begin @ a).add_(cross).add_(bias.begin)
    out_b = (weight.begin @ b).add_(weight.slope @ a).add_(bias.slope)
    out_e = ((weight.begin.abs() + weight.slope.abs()) @ e).add_(cross.abs_())
    out_a, out_b, out_e = (v.view(len(v), -1, largest.shape[2]) for v in (out_a, out_b, out_e))
    out_e.addcmul_(_repeat(layer, rounding + UNDERFLOW), largest)
    return Enclosure(out_a, out_b, out_e)


def _first_linear(layer: dict, weight: Line, bias: Line, rounding: Tensor, x: Tensor):
    """The first layer's results on a sample `(features, B)`: lines in t, and their rounding.

    Results at t are interpolated as weights are, with the rounding of both ends and the same again.
    """
    seen = _inputs(layer, x[None])[0]
    begin, slope = (w @ seen + b for w, b in zip(weight, bias, strict=True))
    line = Line(*(v.view(len(v), -1, x.shape[1]) for v in (begin, slope)))
    return line, _repeat(layer, 4 * (rounding + UNDERFLOW) * seen.abs().amax().clamp(min=1))


def relu(layer: dict, h: Enclosure) -> Enclosure:
    """Between p h and p h + d, for h from `low` to `high`, slope k below 0, and any k <= p <= 1.

    The function less p h is convex, 0 at 0, and largest at an end.  p is the slope of the chord, 1
    and k where the sign is known.  k is 0, but for leaky ReLUs.
    """
    k = layer.get("slope", 0.0)
    size = h.size()
    w = torch.add(h.b.abs(), h.e).add_(size, alpha=8 * U)
    low, high = h.a - w, h.a + w
    p = (high / (2 * w)).clamp_(0, 1).nan_to_num_(1.0)
    if k:
        p = p.mul_(1 - k).add_(k).clamp_(k, 1)
    d = torch.maximum(low.mul_(k - p), high.mul_(1 - p)).clamp_(min=0).div_(2)
    e = torch.addcmul(d, p, h.e).add_(size.mul_(p).add_(d), alpha=16 * U)
    return Enclosure(torch.addcmul(d, p, h.a), p * h.b, e)


def _s_shaped(function: Callable, derivative: Callable) -> Callable:
    def enclose(layer: dict, h: Enclosure) -> Enclosure:
        """Between p h + f(low) - p low and p h + f(high) - p high, p the least derivative.

        f(h) - p h does not fall, and the derivative of f, which rises to its maximum at 0 and falls
        again, is least at an end.
        """
        size = h.size()
        w = torch.add(h.b.abs(), h.e).add_(size, alpha=8 * U)
        low, high = function(h.a - w), function(h.a + w)
        p = torch.minimum(derivative(low), derivative(high)).sub_(64 * U).clamp_(min=0)
        e = ((high - low) / 2).sub_(p * h.b.abs()).clamp_(min=0)
        e.add_(size.mul_(p).add_(1), alpha=64 * U)
        return Enclosure((low + high) / 2, p * h.b, e)

    return enclose


def avgpool(layer: dict, h: Enclosure) -> Enclosure:
    """Means over windows."""
    a, b, e = (_see(v, layer["index"]).mean(dim=1) for v in h)
    size = _see(h.size(), layer["index"]).mean(dim=1)
    return Enclosure(a, b, e.add_(size, alpha=2 * (len(layer["index"]) + 8) * U).add_(UNDERFLOW))


def maxpool(layer: dict, h: Enclosure) -> Enclosure:
    """The largest of each window: never below the one whose a is largest, nor above it by more
    than the others can exceed its a + b s."""
    a, b, e = (_see(v, layer["index"]) for v in h)
    size = (a.abs() + b.abs() + e).amax(dim=1)
    best = a.argmax(dim=1, keepdim=True)
    top = [v.gather(1, best) for v in (a, b, e)]
    above = (a - top[0] + (b - top[1]).abs() + e).amax(dim=1)
    top_a, top_b, top_e = (v[:, 0] for v in top)
    e = (above + top_e).div_(2).add_(size, alpha=16 * U)
    return Enclosure(top_a + (above - top_e) / 2, top_b, e)


STEPS = {
    "relu": relu,
    "leaky_relu": relu,
    "sigmoid": _s_shaped(torch.sigmoid, lambda f: f * (1 - f)),
    "tanh": _s_shaped(torch.tanh, lambda f: 1 - f * f),
    "flatten": lambda layer, h: h,
    "avgpool2d": avgpool,
    "maxpool2d": maxpool,
}


class Network:
    """A sequence of layers between the ends of S segments, on one sample.

    Args:
        layers: as `records_of_layers` gives them.
        theta_1, theta_2: `(S, P)`.
        x: `(B, ...)`.
        form: `"affine"`, or `"interval"` for plain interval arithmetic.
    """

    def __init__(self, layers: list[dict], theta_1, theta_2, x: Tensor, form: str = "affine"):
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; known: {', '.join(map(repr, FORMS))}")
        ends = theta_1.double(), theta_2.double()
        self.form, self.steps, self.first = form, [], None
        self.x, start = x.double().flatten(1).T, 0
        for layer in map(dict, layers):
            if "kernel_size" in layer:
                layer["index"] = _windows(layer, x.device)
            if layer["layer"] not in ("linear", "conv2d"):
                self.steps.append((layer, None))
                continue
            layer.setdefault("n_in", len(layer.get("index", ())))
            n = layer.get("channels", layer["n_out"]) * (layer["n_in"] + layer["bias"])
            start = layer.get("start", start)
            parameters = _parameters(layer, *(theta[:, start : start + n] for theta in ends))
            start += n
            if self.first is None and all(step["layer"] == "flatten" for step, _ in self.steps):
                self.first = _first_linear(layer, *parameters, self.x)
            else:
                self.steps.append((layer, parameters))

    def outputs(self, segment: Tensor, center: Tensor, radius: Tensor) -> Enclosure:
        """The outputs on pieces `center - radius` to `center + radius`, each argument `(I,)`."""
        pieces = segment, center, radius
        if self.first is None:
            zero = torch.zeros_like(self.x)
            h = Enclosure(*(v.expand(len(segment), -1, -1) for v in (self.x, zero, zero)))
        else:
            line, rounding = self.first
            a, b = line.on(*pieces)
            h = self._form(Enclosure(a, b, rounding[segment].expand_as(a)))
        for layer, parameters in self.steps:
            if parameters is None:
                h = STEPS[layer["layer"]](layer, h)
            else:
                weight, bias = (line.on(*pieces) for line in parameters[:2])
                h = self._form(linear(layer, weight, bias, parameters[2][segment], h))
        return h

    def _form(self, h: Enclosure) -> Enclosure:
        if self.form == "affine":
            return h
        return Enclosure(h.a, torch.zeros_like(h.b), h.b.abs().add(h.e).mul_(1 + 4 * U))


def _residual(loss: Callable[[Tensor], Tensor]) -> Callable:
    def per_sample(z: Tensor, e: Tensor, y: Tensor, sign: int) -> Tensor:
        v = (z - y).abs_()
        e = e + 4 * U * (z.abs() + y.abs() + e)
        return loss(v.add_(e, alpha=sign).clamp_(min=0)).mean(dim=1)

    return per_sample


def _above_label(z: Tensor, e: Tensor, y: Tensor, sign: int) -> Tensor:
    """By how much each output can (sign 1) or must (-1) exceed the label's; 0 at the label."""
    label = y.expand(len(z), 1, -1)
    e = e + 4 * U * (z.abs() + e)
    e = e + e.gather(1, label)
    d = (z - z.gather(1, label)).add_(e + 4 * U * e, alpha=sign)
    return d.scatter_(1, label, 0)


def _cross_entropy(z: Tensor, e: Tensor, y: Tensor, sign: int) -> Tensor:
    d = _above_label(z, e, y, sign)
    loss = torch.logsumexp(d, dim=1)
    return loss + sign * 4 * (d.shape[1] + 64) * U * (1 + d.abs().amax(dim=1))


def _error(z: Tensor, e: Tensor, y: Tensor, sign: int) -> Tensor:
    d = _above_label(z, e, y, sign).scatter_(1, y.expand(len(z), 1, -1), -1)
    return ((d >= 0) if sign > 0 else (d > 0)).any(dim=1).double()


# The largest (sign 1) or least (-1) loss of each sample for outputs z +- e, `(I, B)`, and whether
# it is convex in z.
BOUNDED_METRICS: dict[str, tuple[Callable, bool]] = {
    "mse": (_residual(torch.square), True),
    "mae": (_residual(torch.clone), True),
    "huber": (_residual(lambda v: (c := v.clamp(max=0.1)) * (v - c / 2)), True),
    "cross_entropy": (_cross_entropy, True),
    "error": (_error, False),
}


def metric_of(function: Callable) -> str:
    """The name of a metric for which bounds are known; ValueError for any other."""
    for name in BOUNDED_METRICS:
        if LOSSES[name] is function:
            return name
    what = next((n for n, f in LOSSES.items() if f is function), function)
    raise ValueError(
        f"no bounds are known for the metric {what}; known: {', '.join(BOUNDED_METRICS)}"
    )


def check_evaluation_set(metric: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise ValueError for a sample that the metric takes otherwise than the bounds do, or NaN."""
    shape = tuple(module(x[:1]).shape[1:])
    outputs = f"(B, {', '.join(map(str, shape))})"
    if metric in ("cross_entropy", "error"):
        right = y.dim() == 1 and not (y.is_floating_point() or y.dtype == torch.bool)
        right = right and len(shape) == 1 and 0 <= int(y.min()) and int(y.max()) < shape[0]
        needed = f"integer labels (B,) from 0 to C - 1 for outputs (B, C), which are {outputs}"
    else:
        right = tuple(y.shape[1:]) == shape and y.is_floating_point()
        needed = f"floating-point targets of the outputs' shape, {outputs}"
    if not right:
        raise ValueError(f"y is {y.dtype} of shape {tuple(y.shape)}; {metric} needs {needed}")
    for name, v in (("x", x), ("y", y)):
        if not bool(torch.isfinite(v).all()):
            raise ValueError(f"{name} of the evaluation set holds NaN or inf")


def sample_of(metric: str, y: Tensor) -> Tensor:
    """Targets as bounds need them, `(outputs or 1, B)`: float64, labels int64."""
    y = y.flatten(1).T if y.dim() > 1 else y[None]
    return y.long() if metric in ("cross_entropy", "error") else y.double()


def losses(metric: str, h: Enclosure, y: Tensor) -> Tensor:
    """Mean losses over a sample on each of I pieces, without the rounding of the mean.

    Returns:
        `(3, I)`: two whose larger one no loss on the piece exceeds, and, right only for a piece
        without radius, one that none is below.
    """
    per_sample, convex = BOUNDED_METRICS[metric]
    ends = [per_sample(z, h.e, y, 1) for z in (h.a + h.b, h.a - h.b)]
    if not convex:
        ends = [torch.maximum(*ends)] * 2
    upper, other, value = (v.mean(dim=1) for v in (*ends, per_sample(h.a, h.e, y, -1)))
    # Of an enclosure that overflowed nothing is known, whatever a comparison with NaN says.
    lost = ~torch.isfinite(h.a + h.b + h.e).flatten(1).all(dim=1)
    return torch.stack([upper.masked_fill(lost, torch.inf), other, value.masked_fill(lost, 0)])


def bounds(means: Tensor, n_values: int) -> Tensor:
    """From `losses` over a whole sample to upper bounds and values at the centre, `(2, I)`.

    Rounding of a mean of `n_values` numbers that are not negative is relative to it.
    """
    rounding = 4 * (n_values + 64) * U
    upper, value = means[:2].amax(dim=0), means[2]
    upper = torch.where(upper.isnan(), torch.inf, upper * (1 + rounding) + UNDERFLOW)
    value = value * (1 - rounding) - UNDERFLOW
    return torch.stack([upper, value.nan_to_num(nan=0).clamp(min=0)])
