"""What the page `walk.md` shows: losses, filters and predictions along a string and its chord."""

import json
from base64 import b64encode

import torch
from torch import Tensor

from dss.strings import String
from dss.task import Task
from dss.theta import points_along, segment_lengths, shapes_of, unflatten

N_STATIONS = 101  # of the slider, both ends included
QUANTILE = 0.999  # of the absolute weights, which gets the strongest colour


def walk(task: Task, string: String) -> dict:
    """Everything that the page needs, as plain values.

    Args:
        task: of grey images, with a linear first layer.
        string: of that task.

    Returns:
        `L0`, `n_digits`; `networks`, arc lengths of the string's networks; for `string` and
        `straight` at each station `losses`, `errors` and `n_changed`, how many digits are read
        otherwise than by theta_1, and for the digits that the string reads in more than one way
        `classes`, a digit a station, in the order in which they change; their `labels`; and in
        base64 the uint8 `pixels` and the int8 `weights` of the first layer of each network, of
        which 127 is `largest`; `scale` is the weight of the strongest colour.
    """
    x, y = (v.cpu() for v in task.splits["test"])
    stations = torch.linspace(0, 1, N_STATIONS, dtype=torch.float64)
    paths, classes = {}, {}
    for path, thetas in (("string", string.thetas), ("straight", string.thetas[[0, -1]])):
        thetas = points_along(thetas, stations)
        classes[path] = read = task.outputs(thetas, x).argmax(dim=2).cpu()  # (station, digit)
        paths[path] = {
            "losses": rounded(task.losses(thetas)),
            "errors": rounded((read != y).double().mean(dim=1)),
            "n_changed": (read != read[0]).sum(dim=1).tolist(),
        }
    is_other = classes["string"] != classes["string"][0]
    first = is_other.int().argmax(dim=0)  # station at which a digit changes
    shown = first.argsort(stable=True)[(first == 0).sum() :]
    for path, read in classes.items():
        paths[path]["classes"] = ["".join(map(str, row)) for row in read[:, shown].T.tolist()]
    weights = first_layer(task, string.thetas)
    sizes = weights.abs().flatten().sort().values
    scale, largest = sizes[int(QUANTILE * len(sizes))], sizes[-1]
    length = segment_lengths(string.thetas)
    return {
        "L0": string.L0,
        "n_digits": len(y),
        "networks": rounded(torch.cat([length.new_zeros(1), length.cumsum(0) / length.sum()])),
        "scale": rounded(scale[None])[0],
        "largest": rounded(largest[None])[0],
        "sides": list(x.shape[-2:]),
        "labels": y[shown].tolist(),
        "pixels": packed((x[shown] * 255).round().to(torch.uint8)),
        "weights": packed((weights / largest * 127).round().to(torch.int8)),
    } | paths


def first_layer(task: Task, thetas: Tensor) -> Tensor:
    """Weights of the first layer, `(K, n_units, n_pixels)`."""
    shapes = shapes_of(task.module)
    return unflatten(thetas, shapes)[next(iter(shapes))].cpu()


def rounded(values: Tensor) -> list[float]:
    """Numbers with six digits."""
    return [float(f"{v:.6g}") for v in values.tolist()]


def packed(values: Tensor) -> str:
    """Bytes of a tensor in base64."""
    return b64encode(values.contiguous().numpy().tobytes()).decode()


def script(data: dict) -> bytes:
    """The data as a script: a page that is opened from the disk cannot fetch a file."""
    return f"globalThis.DSS_WALK = {json.dumps(data, separators=(',', ':'))};\n".encode()
