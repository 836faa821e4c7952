"""Searches that survive: their state in a file, and whose search it is."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dss.checks import Rule, check_fields, short
from dss.files import check_target, load_tensors, save_tensors
from dss.networks.samples import described, size_of
from dss.provenance import source
from dss.task import Task

CHECKPOINT_FORMAT = "dss-checkpoint-1"

# Of a task; how work is cut into groups changes the rounding.
TASK_SETTINGS = ("name", "loss", "metric", "eval_chunk", "memory")

Result = TypeVar("Result")

# What a file holds beside tensors.
HEADER: dict[str, Rule] = {
    "made by": (
        lambda v: isinstance(v, dict) and all(isinstance(text, str) for text in v.values()),
        "names and texts",
    ),
    "state": (lambda v: isinstance(v, dict), "names and values"),
    "on device": (
        lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
        "a list of names",
    ),
}


def fingerprint(task: Task, call: Mapping) -> dict[str, str]:
    """What a search depends on, by name, so that a difference can be named.

    Args:
        task: its samples, settings and module count, and what its functions give for one network.
        call: arguments; tensors and lists of numbers count bit for bit.
    """
    # Functions cannot be compared, but what they give can.
    generator = torch.Generator().manual_seed(0)
    probe = task.probes(1, generator).to(task.device)
    n = size_of(task.splits["train"]) if task.splits else 0
    whole = task.batch_size is None  # of one graph no part can be taken
    batch = slice(None) if whole else torch.arange(min(n, 100), device=task.device)
    values = {"source of dss": source(*modules_of(task)), "version of torch": torch.__version__}
    values |= {name: getattr(task, name) for name in TASK_SETTINGS}
    values |= {"device": task.device.type, "training batch": task.batch_size}
    for split, sample in task.splits.items():
        values |= described(split, sample)
    values |= {"reference": task.reference} | dict(call)
    values["module"] = str(task.module)
    values["loss of a network"] = task.losses(probe)
    values["gradient of a network"] = task.gradients(probe, batch, generator)[1]
    return {name: _as_text(value) for name, value in values.items()}


def modules_of(task: Task) -> list[str]:
    """The modules of dss that a search on a task begins from: its own, and those in which the
    task's layers and functions are written.  What these import counts too."""
    functions = [task.init_function, task.loss_function, task.metric_function, task.noise]
    functions.append(getattr(task, "function", None))  # of a landscape
    functions = [getattr(f, "func", f) for f in functions]  # of a partial
    layers = [type(layer) for layer in task.module.modules()] if task.module else []
    names = {getattr(code, "__module__", None) or "" for code in [*functions, *layers, type(task)]}
    return sorted({"dss.sampling"} | {name for name in names if name.startswith("dss.")})


def _as_text(value) -> str:
    if isinstance(value, list):
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        return repr(value)
    digest, flat = hashlib.sha256(), value.detach().reshape(-1)
    for part in flat.split(2**20):  # a copy of large data would be as large
        # One element is contiguous whatever its stride says, and a view as bytes minds the stride.
        part = part.cpu().clone(memory_format=torch.contiguous_format)
        digest.update(part.view(torch.uint8).numpy())
    return f"{value.dtype} {tuple(value.shape)} with sha256 {digest.hexdigest()[:16]}"


def _is_of_generator(value) -> bool:
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError):
        return False
    return value.dim() == 1


def save_state(path: str | Path, made_by: dict[str, str], state: Mapping) -> None:
    """Write tensors and plain values, by name; the file changes at once or not at all."""
    tensors = {name: v for name, v in state.items() if isinstance(v, Tensor)}
    values = {name: v for name, v in state.items() if name not in tensors}
    moved = [name for name, v in tensors.items() if v.device.type != "cpu"]
    header = {"made by": made_by, "state": values, "on device": moved}
    save_tensors(path, CHECKPOINT_FORMAT, tensors, header)


def load_state(
    path: str | Path,
    made_by: dict[str, str],
    device: torch.device,
    rules: Callable[[Mapping], Mapping[str, Rule]],
) -> dict | None:
    """What `save_state` wrote; None where there is no file.

    Args:
        path: of the file.
        made_by: as `fingerprint` gives it for this call.
        device: where tensors go that were on one.
        rules: gives, for a state, what each of its fields must be.

    Raises:
        TypeError, OSError: it cannot be written, `check_target` says why.
        ValueError: as there; or the file is damaged, or was made by another call, which is named.
    """
    if not check_target(path).exists():
        return None

    def build(tensors: dict, values: dict) -> dict:
        check_fields(values, HEADER)
        other = values["made by"]
        for name in made_by | other:
            here, there = made_by.get(name, "nothing"), other.get(name, "nothing")
            if here != there:
                raise ValueError(f"it is of another search: {name} is {there} there, {here} here")
        if state := tensors | values["state"]:
            check_fields(state, rules(state), "state")
        if surplus := set(values["on device"]) - set(tensors):
            raise ValueError(f"on device: {short(surplus.pop())} is no tensor")
        moved = {name: tensors[name].to(device) for name in values["on device"]}
        return tensors | moved | values["state"]  # the digest wants `tensors` as they were read

    return load_tensors(path, CHECKPOINT_FORMAT, build)


def once(
    path: str | Path | None,
    task: Task,
    call: Mapping,
    generator: torch.Generator,
    kind: type[Result],
    compute: Callable[[], Result],
    rules: Mapping[str, Rule],
) -> Result:
    """`compute()`; or, where the file holds what the same call gave before, that.

    Args:
        path: of the file; None to compute without one.
        task, call: what it depends on beside the generator, as in `fingerprint`.
        generator: ends in the same state either way.
        kind: of the result, a dataclass of tensors and plain values.
        compute: gives it.
        rules: what the fields of a result must be.

    Raises:
        TypeError, ValueError, OSError: as in `load_state`.
    """
    if path is None:
        return compute()
    made_by = fingerprint(task, dict(call) | {"generator": generator.get_state()})
    rules = {**rules, "generator": (_is_of_generator, "the state of a generator")}
    state = load_state(path, made_by, task.device, lambda _: rules)
    if state:
        generator.set_state(state.pop("generator"))
        return kind(**state)
    save_state(path, made_by, {})  # a folder that cannot be written is an error now
    result = compute()
    save_state(path, made_by, vars(result) | {"generator": generator.get_state()})
    return result
