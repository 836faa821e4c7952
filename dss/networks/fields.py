"""What a task holds of a network that someone brings: checked, tried on a few samples, measured."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dss.checks import check_whole, lookup, short
from dss.networks.accept import (
    FEW,
    Run,
    check_is_mean,
    check_module,
    check_split,
    needs_autograd,
    run_samples,
    with_layers_apart,
)
from dss.networks.architectures import reset_parameters_of
from dss.networks.batchnorm import WithReference, statistics, with_statistics
from dss.networks.brought import (
    TRAINABLE,
    OutputTaken,
    check_lower_is_better,
    drawn_by,
    freeze,
    named_loss,
    network_of,
)
from dss.networks.losses import LOSSES
from dss.networks.memory import Budget
from dss.networks.observed import check_writes
from dss.networks.samples import (
    READ,
    Sample,
    Streamed,
    Tree,
    call,
    held,
    opened,
    rows_of,
    size_of,
)
from dss.networks.stacks import can_be_stacked, is_plain, one_by_one_if_needed
from dss.theta import shapes_of


def fields_of(
    module: nn.Module | Callable[[], nn.Module],
    loss: str | Callable,
    train: tuple[Tree, Tree] | Dataset | DataLoader,
    test: tuple[Tree, Tree] | Dataset | DataLoader,
    metric: str | Callable | None,
    batch_size: int | None,
    eval_chunk: int | None,
    trainable: str,
    output: Callable | None,
) -> dict[str, Any]:
    """The fields of a `Task` that follow from a network, its loss and its samples.

    Args, Raises: as in `Task.from_module`.
    """
    is_adapter = lookup(TRAINABLE, trainable, "trainable")
    module, factory, reference = _parts_of(module)
    first = next(module.parameters(), torch.zeros(()))
    samples, batch_size, eval_chunk = _samples_of(train, test, batch_size, eval_chunk, first)
    # A dataset that is not held is read in parts where nobody says how large.
    parts = READ if eval_chunk is None and isinstance(samples["test"], Streamed) else eval_chunk
    check_module(module, None if reference is not None else parts, is_adapter)
    module = with_layers_apart(module)
    if is_adapter:
        freeze(module)
    if output is not None:
        if not callable(output):
            raise TypeError(f"output is {short(output)}; a function is needed")
        module.register_forward_hook(OutputTaken(output))
    n_params = sum(shape.numel() for shape in shapes_of(module).values())
    if n_params == 0:
        raise ValueError(f"{type(module).__name__} has no parameter to train")
    reference = None if reference is None else reference.to(first)
    given = loss, loss if metric is None else metric
    check_lower_is_better(given[1])
    is_cut = batch_size is not None or eval_chunk is not None
    splits, functions, run, few = _tried(module, reference, given, samples, is_cut, parts)
    init = drawn_by(factory, lambda p: p.requires_grad or not is_adapter) if factory else None
    return {
        "name": type(module).__name__,
        "n_params": n_params,
        "loss": _name_of(given[0]),
        "metric": _name_of(given[1]),
        "init_function": init or partial(reset_parameters_of, module),
        "budget": Budget(
            n_params,
            first.device,
            n_activations=run.n_activations,
            n_fixed=run.n_fixed,
            stacks=can_be_stacked(module, few),
            is_plain=is_plain(module),
        ),
        "module": module,
        "loss_function": functions[0],
        "metric_function": functions[1],
        "splits": splits,
        "reference": reference,
        "batch_size": batch_size,
        "eval_chunk": eval_chunk,
        "differentiates": needs_autograd(module, few),
        "dtype": first.dtype,
        "device": first.device,
    }


def _parts_of(module) -> tuple[nn.Module, Callable | None, Tensor | None]:
    """The network without wrappers, the factory that made it, and BatchNorm's reference."""
    module, factory = network_of(module)
    module = getattr(module, "_orig_mod", module)  # what torch.compile was given
    if isinstance(module, WithReference):
        return module.module, factory, module.x
    return module, factory, None


def _samples_of(
    train, test, batch_size: int | None, eval_chunk: int | None, first: Tensor
) -> tuple[dict[str, Sample], int | None, int | None]:
    """Both samples as a task holds them, the size of batches and that of parts in evaluation."""
    (train, of_loader), (test, _) = opened("train", train), opened("test", test)
    batch_size = of_loader if batch_size is None else batch_size
    if batch_size is None and isinstance(train, Streamed):
        raise ValueError("batch_size is None; training on a dataset needs one")
    sizes = {"batch_size": batch_size, "eval_chunk": eval_chunk}
    checked = (None if n is None else check_whole(n, what, 1) for what, n in sizes.items())
    return {"train": train, "test": held(test, first.device, first.dtype)}, *checked


def _tried(
    module: nn.Module,
    reference: Tensor | None,
    given: tuple[str | Callable, str | Callable],
    samples: dict[str, Sample],
    is_cut: bool,
    parts: int | None,
) -> tuple[dict[str, Sample], list[Callable], Run, Tree]:
    """Run loss and metric on a few samples of both splits, for errors while the cause is in sight.

    Args:
        module, reference, samples: of a task.
        given: loss and metric; as modules they may ignore a label, which their names do not.
        is_cut: whether the caller wants batches, or parts in evaluation.
        parts: samples at a time in evaluation; None: all.

    Returns:
        The samples in the network's dtype; loss and metric as functions that stacks of networks
        take; what the last run shows; and the inputs of a few samples.
    """
    named = zip(map(named_loss, given), ("loss", "metric"), strict=True)
    functions = [f if callable(f) else lookup(LOSSES, f, what) for f, what in named]
    dtype = next(module.parameters()).dtype
    measured = module
    if reference is not None:
        measured = with_statistics(copy.deepcopy(module), statistics(module, {}, reference))
    splits = {}
    for split, network in {"train": module, "test": measured}.items():
        splits[split] = sample = check_split(split, samples[split], dtype)
        x, y = sample.read(slice(0, 64)) if isinstance(sample, Streamed) else sample
        if split == "train":
            check_writes(module, rows_of(x, slice(2)))
        for i, descends in enumerate((True, False)):
            checked = given[i] if callable(given[i]) else functions[i]
            run = run_samples(network, checked, x, y, split, descends)
            if run.n_least > FEW and is_cut:
                raise ValueError(
                    f"the network takes the {size_of(sample)} {split} samples at once and no "
                    "fewer; leave batch_size and eval_chunk out"
                )
            target = rows_of(y, slice(size_of((run.output, y))))
            functions[i] = one_by_one_if_needed(functions[i], run.output, target, descends)
    metric = given[1] if callable(given[1]) else functions[1]
    if parts is not None and parts < size_of(splits["test"]):
        check_is_mean(metric, partial(call, measured), splits["test"], dtype, parts)
    return splits, functions, run, rows_of(x, slice(run.n_least))


def _name_of(given: str | Callable) -> str:
    named = named_loss(given)
    return named if isinstance(named, str) else getattr(named, "__name__", "loss")
