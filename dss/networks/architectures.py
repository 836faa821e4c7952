"""Architectures of the paper's networks, and how their initial values are drawn."""

import copy
import math

import torch
from torch import Tensor, nn

from dss.checks import lookup

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def mlp(widths: list[int], activation: str = "relu", bias: bool = True) -> nn.Sequential:
    """Fully connected layers with an activation between them, `widths[0]` inputs."""
    act = lookup(ACTIVATIONS, activation, "activation")
    layers = [nn.Linear(a, b, bias) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*[m for layer in layers[:-1] for m in (layer, act())], layers[-1])


def image_mlp(side: int, width: int = 32) -> nn.Sequential:
    """The fully connected network for images of side x side pixels: two hidden layers."""
    return nn.Sequential(nn.Flatten(), *mlp([side * side, width, width, 10]))


def small_cnn(side: int, n_channels: int = 1, width: int = 8) -> nn.Sequential:
    """Two convolutions 5x5 with `width` channels and stride 2, a linear layer to 10 classes."""

    def halve(n: int) -> int:
        return (n - 5 + 2 * 2) // 2 + 1

    return nn.Sequential(
        nn.Conv2d(n_channels, width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * halve(halve(side)) ** 2, 10),
    )


class ResidualBlock(nn.Module):
    """Two convolutions 3x3 with BatchNorm beside an identity, which new channels enter as zeros.

    Without `skip` the identity is left out, without `norm` BatchNorm.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, skip: bool = True, norm: bool = True):
        super().__init__()
        self.conv_1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=not norm)
        self.norm_1 = nn.BatchNorm2d(n_out) if norm else nn.Identity()
        self.conv_2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=not norm)
        self.norm_2 = nn.BatchNorm2d(n_out) if norm else nn.Identity()
        self.stride, self.n_new, self.skip = stride, n_out - n_in, skip

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm_1(self.conv_1(x)))
        h = self.norm_2(self.conv_2(h))
        if not self.skip:
            return torch.relu(h)
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(h + nn.functional.pad(x, (0, 0, 0, 0, 0, self.n_new)))


def resnet(
    n_blocks: int, n_channels: int = 3, skip: bool = True, norm: bool = True
) -> nn.Sequential:
    """The ResNet of depth 6 n + 2 for small images, with n blocks of 16, 32 and 64 channels each.

    Args:
        n_blocks: of each size.
        n_channels: of the images.
        skip: whether blocks have connections around them.
        norm: whether they have BatchNorm; without it convolutions have a bias.

    Source: He et al., Deep Residual Learning for Image Recognition (2016), Sec. 4.2.
    """
    first = nn.Conv2d(n_channels, 16, 3, padding=1, bias=not norm)
    layers = [first, nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU()]
    before = 16
    for width in (16, 32, 64):
        for k in range(n_blocks):
            stride = 2 if k == 0 and width > 16 else 1
            layers.append(ResidualBlock(before, width, stride, skip, norm))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class DenseLayer(nn.Module):
    """A convolution 1x1 to four times `growth` channels and one 3x3 to `growth`, beside the input.

    BatchNorm and a ReLU stand before each.
    """

    def __init__(self, n_in: int, growth: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(n_in), nn.BatchNorm2d(4 * growth)
        self.conv_1 = nn.Conv2d(n_in, 4 * growth, 1, bias=False)
        self.conv_2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(torch.relu(self.norm_1(x)))
        return torch.cat([x, self.conv_2(torch.relu(self.norm_2(h)))], dim=1)


def densenet(n_layers: int, growth: int, n_channels: int = 3) -> nn.Sequential:
    """DenseNet-BC of depth 6 n + 4 for small images: three blocks of n layers.

    Between two blocks a convolution 1x1 halves the channels, and an average pooling the sides.

    Source: Huang et al., Densely Connected Convolutional Networks (2017).
    """
    width = 2 * growth
    layers = [nn.Conv2d(n_channels, width, 3, padding=1, bias=False)]
    for block in range(3):
        if block:
            halved = nn.Conv2d(width, width // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(width), nn.ReLU(), halved, nn.AvgPool2d(2)]
            width //= 2
        layers += [DenseLayer(width + k * growth, growth) for k in range(n_layers)]
        width += n_layers * growth
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def authors_colour_cnn() -> nn.Sequential:
    """The network of the authors' CIFAR-10 script, for images of 24x24 pixels.

    Differs: local response normalisation, which the tutorial that the script follows has after each
    convolution, is left out; it divides by nearly 1, and takes more time than all the rest.
    """
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(64 * 6 * 6, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


# Of the layers of `authors_colour_cnn`: standard deviation of the weights, and the biases.
TUTORIAL_VALUES = [(0.05, 0.0), (0.05, 0.1), (0.04, 0.1), (0.04, 0.1), (1 / 192, 0.0)]


def draw_tutorial(module: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    """Initial values of `n` networks of `authors_colour_cnn`: truncated normal weights."""
    sizes = [p.numel() for p in module.parameters()]
    parts = list(uniform(n, sum(sizes), generator).split(sizes, dim=1))
    for k, (deviation, bias) in enumerate(TUTORIAL_VALUES):
        parts[2 * k] = 10 * deviation * _truncated_normal(parts[2 * k])
        parts[2 * k + 1] = torch.full_like(parts[2 * k + 1], bias)
    return torch.cat(parts, dim=1)


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
    kept = torch.rand(n, 1024, dtype=torch.float32, generator=generator).lt(0.5)
    return (kept.to(device),)


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
    "narrow": (lambda u, n: 0.2 * u - 0.1, lambda u, n: 0.2 * u - 0.1),
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
