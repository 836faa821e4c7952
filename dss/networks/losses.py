"""What tasks are made of: losses, architectures, initial values, stacks of networks."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dss import dense
from dss.theta import interpolate, shapes_of, unflatten


def error_rate(output: Tensor, y: Tensor) -> Tensor:
    """Fraction of samples whose largest output is not the label; output `(B, C)`, y `(B,)`.

    An output with NaN has no largest one; it makes the rate NaN.
    """
    wrong = (output.argmax(dim=1) != y).to(output.dtype)
    return torch.where(output.isnan().any(dim=1), torch.nan, wrong).mean()


def cross_entropy_of_softmax(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with the softmax applied twice, as the authors' MNIST script trains."""
    return F.cross_entropy(output.softmax(dim=1), y)


# Each maps outputs (B, ...) and targets to their mean over the batch.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    # Residuals on [0, 1] never pass torch's default delta of 1, where huber is mse / 2.
    "huber": partial(F.huber_loss, delta=0.1),
    "cross_entropy": F.cross_entropy,
    "error": error_rate,
    "cross_entropy_of_softmax": cross_entropy_of_softmax,
}

# Losses that are means of a function of the residual: that function and its derivative.
RESIDUAL_LOSSES = [
    (LOSSES["mse"], (torch.square, lambda r: 2 * r)),
    (LOSSES["mae"], (torch.abs, torch.sign)),
    (
        LOSSES["huber"],
        (lambda r: (c := r.clamp(-0.1, 0.1)) * (r - c / 2), lambda r: r.clamp(-0.1, 0.1)),
    ),
]

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def mlp(widths: list[int], activation: str = "relu", bias: bool = True) -> nn.Sequential:
    """Fully connected layers with an activation between them, `widths[0]` inputs."""
    act = lookup(ACTIVATIONS, activation, "activation")
    layers = [nn.Linear(a, b, bias) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*[m for layer in layers[:-1] for m in (layer, act())], layers[-1])


def small_cnn(side: int) -> nn.Sequential:
    """Two convolutions 5x5 with 8 channels and stride 2, and a linear layer to 10 classes."""

    def halve(n: int) -> int:
        return (n - 5 + 2 * 2) // 2 + 1

    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * halve(halve(side)) ** 2, 10),
    )


class Dropout(nn.Module):
    """Dropout whose mask is an argument of the network, so that the generator is the run's own."""


class DropoutSequential(nn.Sequential):
    """Layers in sequence; `keep` `(B, width)` is applied at `Dropout`, which is off without."""

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        for layer in self:
            if not isinstance(layer, Dropout):
                x = layer(x)
            elif keep is not None:
                x = 2 * keep * x
        return x


def authors_cnn(side: int) -> nn.Sequential:
    """The network of the authors' MNIST script; dropout acts only when it is given a mask."""
    return DropoutSequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (side // 4) ** 2, 1024),
        nn.ReLU(),
        Dropout(),
        nn.Linear(1024, 10),
    )


def authors_dropout(n: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor]:
    """The mask `(n, 1024)` for one batch: every unit is kept with probability .5."""
    return (torch.rand(n, 1024, generator=generator).lt(0.5).to(device),)


def uniform(n: int, size: int, generator: torch.Generator) -> Tensor:
    """`(n, size)` float64 in (0, 1); row i does not depend on n."""
    u = torch.rand(n, size, dtype=torch.float64, generator=generator)
    return u.clamp(2.0**-54, 1 - 2.0**-53)


def _truncated_normal(u: Tensor) -> Tensor:
    """Normal with sd .1, redrawn beyond two sd, by its inverse distribution function."""
    low = 0.5 * math.erfc(math.sqrt(2))
    return 0.1 * torch.special.ndtri(low + u * (1 - 2 * low))


# Inverse distribution functions of (u, fan_in) for weights and for biases.
INITIAL_VALUES = {
    "torch": (lambda u, n: (2 * u - 1) / math.sqrt(n), lambda u, n: (2 * u - 1) / math.sqrt(n)),
    "uniform": (lambda u, n: 2 * u - 1, lambda u, n: torch.special.ndtri(u)),
    "truncated": (lambda u, n: _truncated_normal(u), lambda u, n: torch.full_like(u, 0.1)),
}


def draw(module: nn.Module, kind: str, n: int, generator: torch.Generator) -> Tensor:
    """Initial values of `n` copies of a network of linear and convolutional layers."""
    parts, fan_in = [], 1
    u = uniform(n, sum(p.numel() for p in module.parameters()), generator)
    sizes = [p.numel() for p in module.parameters()]
    for p, part in zip(module.parameters(), u.split(sizes, dim=1), strict=True):
        fan_in = p[0].numel() if p.dim() > 1 else fan_in
        parts.append(INITIAL_VALUES[kind][p.dim() == 1](part, fan_in))
    return torch.cat(parts, dim=1)


def reset_parameters_of(module: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    """`n` draws from the layers' own initial distributions, each from a seed of its own."""
    module, rows = copy.deepcopy(module).cpu(), []
    for seed in torch.randint(2**62, (n,), generator=generator).tolist():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in module.modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
                elif any(True for _ in layer.parameters(recurse=False)):
                    raise ValueError(
                        f"{type(layer).__name__} has parameters and no reset_parameters(); pass "
                        "init=, a function of (n, generator) that returns (n, P)"
                    )
        rows.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
    return torch.stack(rows)


def with_layers_apart(module: nn.Module) -> nn.Module:
    """A copy in which a layer that stands in several places has a shell in each.

    The shells hold the same parameters.  `functional_call` leaves its own tensors in a layer that
    it meets twice.

    Raises:
        ValueError: a layer holds itself, through a child that holds its parent.
    """
    module, seen = copy.deepcopy(module), set()

    def visit(parent: nn.Module, above: tuple[nn.Module, ...] = ()) -> None:
        above += (parent,)
        for name, child in parent._modules.items():
            if child in above:
                raise ValueError(
                    f"attribute {name!r} of {type(parent).__name__} is a module that holds it; "
                    f"keep the module in a tuple (self.{name} = (module,)), so that PyTorch does "
                    "not take it for a layer"
                )
            if child in seen:
                shell = child.__class__.__new__(child.__class__)  # copy.copy refuses some layers
                shell.__dict__ = child.__dict__.copy()
                child = shell
                for own in ("_parameters", "_buffers", "_modules"):
                    child.__dict__[own] = child.__dict__[own].copy()
                parent._modules[name] = child
            if child is not None:
                seen.add(child)
                visit(child, above)

    visit(module)
    return module


def lookup(table: Mapping, key, what: str):
    """`table[key]`, or a ValueError that lists the known keys."""
    if key not in table:
        known = ", ".join(repr(k) for k in table)
        raise ValueError(f"unknown {what} {key!r}; known: {known}")
    return table[key]


def stacked_outputs(module: nn.Module, thetas: Tensor, x: Tensor, *noise: Tensor) -> Tensor:
    """Outputs of N networks of one architecture on the same inputs.

    Args:
        module: the architecture; its own parameters are not used.
        thetas: `(N, P)`.
        x: `(B, ...)`.
        noise: further arguments of the module.

    Returns:
        `(N, B, ...)`, differentiable.
    """
    layers = dense.layers_of(module, x.dim())
    if layers is not None:
        parameters = dense.parameters_of(layers, thetas)
        return dense.results(layers, parameters, x)[-1].transpose(1, 2)
    shapes = shapes_of(module)

    def output(theta: Tensor) -> Tensor:
        return functional_call(module, unflatten(theta, shapes), (x, *noise))

    return output(thetas[0])[None] if len(thetas) == 1 else torch.vmap(output)(thetas)


@dense.once_per_module
def split_after_first(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """A plain sequence as its first layer and the rest, where splitting it saves work.

    None where the first layer is no Linear or Conv2d with at least 8 inputs to a unit.
    """
    layers = dense.plain_layers(module)
    n = 2 if layers and type(layers[0]) is nn.Flatten else 1
    first, rest = layers[:n], nn.Sequential(*layers[n:])
    if (
        not any(True for _ in rest.parameters())
        or type(first[-1]) not in (nn.Linear, nn.Conv2d)
        or first[-1].weight[0].numel() < 8
    ):
        return None
    return nn.Sequential(*first), rest


def losses_between(
    module: nn.Module,
    loss: Callable,
    theta_1: Tensor,
    theta_2: Tensor,
    t: Tensor,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """`loss` of the interpolated models of S segments at every t of their grids.

    The first layer's result is linear in t, so that it is computed at the two ends only; with
    images as inputs it holds a good part of the work.

    Args:
        module: a network that `split_after_first` can split.
        loss: as in `stacked_losses`.
        theta_1, theta_2: `(S, P)`.
        t: `(S, n_t)`.
        x, y: `(B, ...)`.

    Returns:
        `(S, n_t)`.
    """
    first, rest = split_after_first(module)
    n = sum(p.numel() for p in first.parameters())
    shapes = shapes_of(rest)

    def output(theta: Tensor, h: Tensor) -> Tensor:
        return functional_call(rest, unflatten(theta, shapes), (h,))

    ends = [stacked_outputs(first, theta[:, :n], x) for theta in (theta_1, theta_2)]
    found = []
    for t_k in t.T:
        h = torch.lerp(*ends, t_k.view(-1, *[1] * (ends[0].dim() - 1)))
        theta = interpolate(theta_1[:, n:], theta_2[:, n:], t_k)
        alone = len(h) == 1  # vmap makes one convolution slower
        outputs = output(theta[0], h[0])[None] if alone else torch.vmap(output)(theta, h)
        found.append(stacked_losses(loss, outputs, y))
    return torch.stack(found, dim=1)


def stacked_losses(loss: Callable, outputs: Tensor, y: Tensor) -> Tensor:
    """`loss` of each of N networks: outputs `(N, B, ...)` and targets `(B, ...)` to `(N,)`."""
    known = _of_residual(loss)
    if known is not None:
        return known[0](outputs - y.to(outputs.dtype)).flatten(1).mean(dim=1)
    if len(outputs) == 1:
        return loss(outputs[0], y)[None]
    return torch.vmap(loss, in_dims=(0, None))(outputs, y)


def _of_residual(loss: Callable) -> tuple[Callable, Callable] | None:
    return next((known for f, known in RESIDUAL_LOSSES if f is loss), None)


def stacked_gradients(
    module: nn.Module, loss: Callable, thetas: Tensor, x: Tensor, y: Tensor, *noise: Tensor
) -> tuple[Tensor, Tensor]:
    """`loss` of each of N networks, `(N,)`, and its gradient, `(N, P)`; see `stacked_outputs`."""
    layers = dense.layers_of(module, x.dim())
    if layers is None:
        leaf = thetas.detach().requires_grad_()
        values = stacked_losses(loss, stacked_outputs(module, leaf, x, *noise), y)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]
    parameters = dense.parameters_of(layers, thetas)
    found = dense.results(layers, parameters, x)
    outputs = found[-1].transpose(1, 2)
    known = _of_residual(loss)
    if known is not None:
        value, derivative = known
        residual = outputs - y.to(outputs.dtype)
        values = value(residual).flatten(1).mean(dim=1)
        slope = derivative(residual).div_(math.prod(residual.shape[1:]))
    else:
        outputs = outputs.requires_grad_()
        values = stacked_losses(loss, outputs.clone(), y)  # a loss may work in place
        slope = torch.autograd.grad(values.sum(), outputs)[0]
    gradient = dense.gradients(layers, parameters, found, slope.transpose(1, 2))
    return values.detach(), gradient


def check_module(module: nn.Module, eval_chunk: int | None = None) -> None:
    """Refuse layers whose output is not a function of the interpolated parameters alone."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"{type(module).__name__} runs copies of a network; pass module.module")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{type(module).__name__}: pass the nn.Module that it was made from")
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    if 0 < len(frozen) < len(list(module.parameters())):
        raise ValueError(
            f"parameter {frozen[0]!r} is frozen and others are not, but beads descend in all of "
            "them; call module.requires_grad_(True), or register what is to stay as buffers"
        )
    layers = set(module.modules())
    for name, layer in module.named_modules():
        where = f"layer {name!r} ({type(layer).__name__})"
        for attribute, value in vars(layer).items():
            members = value.values() if isinstance(value, dict) else value
            if isinstance(value, list | tuple | dict) and any(
                isinstance(m, nn.Module) and m not in layers and m.state_dict() for m in members
            ):
                raise ValueError(
                    f"{where} keeps layers in a plain {type(value).__name__}, {attribute!r}, where "
                    "PyTorch does not see them; use nn.ModuleList or nn.ModuleDict"
                )
        if hasattr(layer, "_u") or hasattr(layer, "weight_u"):
            raise ValueError(
                f"{where} keeps vectors of spectral_norm, which do not belong to an interpolated "
                "model; remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        if getattr(layer, "running_mean", None) is not None:
            raise ValueError(
                f"{where} keeps running statistics, which do not belong to an interpolated model; "
                "use dss.batch_statistics (BatchNorm), GroupNorm or LayerNorm, or set "
                "track_running_stats=False"
            )
        if eval_chunk is not None and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{where} takes its statistics from the batch, which eval_chunk={eval_chunk} would "
                "change; leave eval_chunk out, or use dss.batch_statistics(module, x)"
            )
        p = getattr(layer, "p", None) if isinstance(layer, nn.modules.dropout._DropoutNd) else 0.0
        if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
            p = layer.dropout
        if p and layer.training:
            raise ValueError(
                f"{where} has active dropout with p={p}, which makes gamma noisy; call "
                "module.eval() first, or set p=0"
            )


def check_sample(
    module: nn.Module, loss: Callable, x: Tensor, y: Tensor, split: str, descends: bool
) -> tuple[int, int]:
    """Run two samples, for errors while the cause is in sight.

    Args:
        module, loss, x, y: of a task.
        split: what messages call the samples.
        descends: whether the loss must have a gradient.

    Returns:
        Values that one sample's activations hold in one network, input included; and those that
        a network holds whatever the sample (the reference of `batch_statistics`).

    Raises:
        TypeError, ValueError: as `Task.from_module` says.
    """
    module.requires_grad_(True)
    counts = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, o: counts.append(o.numel() if _is(o) else 0))
        for m in module.modules()
        if not list(m.children())
    ]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            output, n_many = module(x[:64]), sum(counts)
            value = loss(module(x[:2]), y[:2])
            if descends and _is(value) and value.dim() == 0:
                torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    except Exception as error:
        for name, v in (("x", x), ("y", y)):
            if not v.is_floating_point() and "type" in str(error):
                needed = (
                    ("int64", "long") if "to be Long" in str(error) else ("floating point", "float")
                )
                raise TypeError(
                    f"{split} {name} has dtype {v.dtype} where the network or its loss needs "
                    f"{needed[0]}: pass {name}.{needed[1]}() ({error})"
                ) from error
        raise ValueError(f"{split} samples do not fit the network or its loss: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not _is(value) or value.dim() != 0:
        shape = tuple(value.shape) if _is(value) else type(value).__name__
        raise ValueError(f"the loss of two {split} samples is {shape}; a scalar is needed")
    n_few = sum(counts) - n_many
    answers = [module(x[:64]) for _ in range(2)]
    if _is(output) and not all(torch.equal(output, again) for again in answers):
        raise ValueError(
            "the network answers differently to the same input (dropout in its forward?); call "
            "module.eval() first"
        )
    many, few = len(x[:64]), len(x[:2])
    per_sample = (n_many - n_few) // (many - few) if many > few else n_many // many
    return per_sample + x[0].numel(), max(0, n_few - few * per_sample)


def can_be_stacked(module: nn.Module, x: Tensor) -> bool:
    """Whether torch can run two such networks under vmap; recurrent layers it cannot."""
    thetas = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).repeat(2, 1)
    try:
        stacked_outputs(module, thetas.requires_grad_(), x[:2]).sum().backward()
    except RuntimeError:
        return False
    return True


def _is(value) -> bool:
    return isinstance(value, Tensor)
