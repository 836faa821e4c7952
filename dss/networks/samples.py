"""Samples of inputs and targets: held as tensors, or read batch by batch from a dataset.

Inputs and targets are a tensor `(B, ...)` each, or tuples, lists and dicts of tensors with as many
rows.  A network is called with a tuple or list as its arguments, with a dict as its keywords.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data import Dataset as TorchDataset

from dss.checks import short
from dss.networks.memory import free_memory
from dss.networks.modes import usual

Tree = Tensor | tuple | list | dict  # of tensors

LABELS = "labels"  # the target in samples that are dicts, as Hugging Face calls it
READ = 256  # samples that are read at a time where nobody says how many
LOOKED_AT = 16  # samples by which a dataset is told from another


def call(network: Callable, x: Tree, *noise: Tensor) -> Any:
    """What a network answers to inputs, which may be several."""
    arguments, keywords = arguments_of(x)
    return network(*arguments, *noise, **keywords)


def arguments_of(x: Tree) -> tuple[tuple, dict]:
    """Inputs as arguments and keywords of a network."""
    if isinstance(x, Tensor):
        return (x,), {}
    return ((), dict(x)) if isinstance(x, Mapping) else (tuple(x), {})


def rows_of(tree: Tree, rows: slice | Tensor | int) -> Tree:
    """Some rows of every tensor."""
    return tree[rows] if isinstance(tree, Tensor) else tree_map(lambda v: v[rows], tree)


def moved(tree: Tree, device: torch.device | None, dtype: torch.dtype) -> Tree:
    """Every tensor on a device (None: where it is), floating-point ones in a dtype."""

    def move(v: Tensor) -> Tensor:
        return usual(v.to(device or v.device, dtype if v.is_floating_point() else None))

    return move(tree) if isinstance(tree, Tensor) else tree_map(move, tree)


def named_leaves(name: str, tree: Tree) -> dict[str, Tensor]:
    """The tensors of a tree, each with its place: `x`, `x[1]`, `x['mask']`."""
    return {name + keystr(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


@dataclass(frozen=True, eq=False)
class Streamed:
    """A dataset of which batches are read when they are needed.

    Attributes:
        dataset: has a length, and gives sample i as a pair (x, y), or a dict with `labels`.
        collate: makes a batch of a list of samples.
        device, dtype: of what is read.
    """

    dataset: TorchDataset
    collate: Callable
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: slice | Tensor, seed: int = 0) -> tuple[Tree, Tree]:
        """The inputs and targets of some samples; what their transforms draw follows from `seed`.

        Raises:
            TypeError: a batch is no pair of tensors, or of trees of tensors.
        """
        rows = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        with seeded(seed, self.device):
            batch = self.collate([self.dataset[i] for i in rows])
        if isinstance(batch, Mapping) and LABELS in batch:
            batch = {k: v for k, v in batch.items() if k != LABELS}, batch[LABELS]
        check_pair("a batch of the dataset", batch)
        return tuple(moved(tree, self.device, self.dtype) for tree in batch)


Sample = tuple[Tree, Tree] | Streamed


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the global generators of torch, NumPy and Python begin at a seed; after it, they are
    as they were."""
    python, of_numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)


def size_of(sample: Sample) -> int:
    """How many inputs and targets a sample has."""
    return len(sample) if isinstance(sample, Streamed) else len(tree_leaves(sample[0])[0])


def part_of(sample: Sample, rows: slice | Tensor, dtype: torch.dtype, seed: int = 0) -> tuple:
    """Some inputs and targets, floating-point ones in a dtype."""
    if isinstance(sample, Streamed):
        return replace(sample, dtype=dtype).read(rows, seed)
    x, y = sample
    if not isinstance(rows, slice) or rows != slice(None):
        x, y = rows_of(x, rows), rows_of(y, rows)
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == y.dtype == dtype:
        return x, y
    return moved(x, None, dtype), moved(y, None, dtype)


def sample_on(sample: Sample, device: torch.device, dtype: torch.dtype) -> Sample:
    """A sample on another device and in another dtype; what is streamed will be."""
    if isinstance(sample, Streamed):
        return replace(sample, device=device, dtype=dtype)
    return tuple(moved(tree, device, dtype) for tree in sample)


def described(split: str, sample: Sample) -> dict[str, Any]:
    """What tells a sample from another, by name; of a dataset its size and a few of its samples."""
    found = {}
    if isinstance(sample, Streamed):
        found[f"{split} samples"] = f"{len(sample)} of {type(sample.dataset).__name__}"
        few = torch.linspace(0, len(sample) - 1, min(LOOKED_AT, len(sample))).long()
        sample = sample.read(few)
    for name, tree in zip("xy", sample, strict=True):
        found |= named_leaves(f"{split} {name}", tree)
    return found


def opened(split: str, given) -> tuple[Sample, int | None]:
    """A sample as a task holds it, and the size of batches that a loader names.

    Raises:
        TypeError: neither a pair of tensors (or trees of them), nor a dataset with a length, nor a
            DataLoader of one.
        ValueError: a loader with a sampler of its own, which would be left out.
    """
    batch_size, collate = None, default_collate
    if isinstance(given, DataLoader):
        if not isinstance(given.dataset, IterableDataset):
            _check_sampler(split, given)
        batch_size = given.batch_size or getattr(given.batch_sampler, "batch_size", None)
        collate, given = given.collate_fn, given.dataset
    if isinstance(given, IterableDataset):
        raise TypeError(
            f"{split} is an IterableDataset, of which samples cannot be drawn; a dataset with a "
            "length and samples by number is needed"
        )
    if type(given) is TensorDataset and len(given.tensors) > 1 and collate is default_collate:
        *inputs, target = given.tensors
        return (inputs[0] if len(inputs) == 1 else tuple(inputs), target), batch_size
    is_pair = isinstance(given, tuple | list)
    if not is_pair and hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        if isinstance(given, Mapping | Tensor | np.ndarray):
            check_pair(split, given)  # raises
        if len(given) == 0:
            raise ValueError(f"{split} is a {type(given).__name__} without a sample")
        return Streamed(given, collate), batch_size
    check_pair(split, given)
    return tuple(given), batch_size


def check_augment(
    augment: Callable, sample: Sample, device: torch.device, dtype: torch.dtype
) -> None:
    """Try on two samples what changes the inputs of training batches.

    Raises:
        ValueError: it fails, or gives no such inputs, or another number of them.
    """
    x, _ = part_of(sample, slice(0, 2), dtype)
    x = tree_map(torch.clone, x)
    n = len(tree_leaves(x)[0])
    try:
        with seeded(0, device):
            found = tree_leaves(augment(x))
    except Exception as error:
        raise ValueError(f"augment fails on {n} training inputs: {error}") from error
    sizes = [len(v) if isinstance(v, Tensor) and v.dim() else None for v in found]
    if not sizes or any(size != n for size in sizes):
        got = ", ".join(short(v) for v in found) or "nothing"
        raise ValueError(f"augment gives {got} for {n} inputs; as many inputs are needed")


def _check_sampler(split: str, loader: DataLoader) -> None:
    """Raise ValueError for a loader that leaves samples out, or chooses how often each comes."""
    sampler, batches = loader.sampler, loader.batch_sampler
    if batches is not None:
        sampler = getattr(batches, "sampler", None) if type(batches) is BatchSampler else batches
    is_whole = type(sampler) in (RandomSampler, SequentialSampler)
    if type(sampler) is RandomSampler:
        is_whole = not sampler.replacement and sampler.num_samples == len(loader.dataset)
    if not is_whole or batches is None:
        what = "without a batch_size" if is_whole else f"with a {type(sampler).__name__}"
        raise ValueError(
            f"{split} is a DataLoader {what}, but batches are drawn here, all samples alike, from "
            "the generator of the search; pass a loader without a sampler, or its dataset"
        )


def held(sample: Sample, device: torch.device, dtype: torch.dtype) -> Sample:
    """A dataset as tensors, read once, where these fit a quarter of free memory."""
    if not isinstance(sample, Streamed):
        return sample
    first = tree_leaves(sample_on(sample, device, dtype).read(slice(0, 1)))
    n_bytes = sum(v.numel() * v.element_size() for v in first) * len(sample)
    if n_bytes > free_memory(device) / 4:
        return sample
    sample = sample_on(sample, device, dtype)
    pairs = [sample.read(slice(i, i + READ), seed=i) for i in range(0, len(sample), READ)]
    try:
        return tree_map(lambda *parts: torch.cat(parts), *pairs)
    except RuntimeError:  # parts that were padded to lengths of their own
        return sample.read(slice(None))


def check_pair(split: str, given) -> None:
    """Raise TypeError for what is no pair of tensors or of trees of tensors."""
    is_list = isinstance(given, tuple | list)
    kinds = [type(v).__name__ for v in given] if is_list else [type(given).__name__]
    if len(kinds) > 3:
        kinds = [f"a {type(given).__name__} of {len(kinds)}"]
    if isinstance(given, Mapping):
        kinds = [f"a dict of {', '.join(map(repr, given))} without {LABELS!r}, the targets"]
    trees = [tree_leaves(v) for v in given] if is_list and len(given) == 2 else []
    is_right = [isinstance(t, Tensor) and t.dim() > 0 for leaves in trees for t in leaves]
    if len(trees) != 2 or not all(trees) or not all(is_right):
        raise TypeError(
            f"{split} is {', '.join(kinds)}; a pair (x, y) of tensors is needed (of arrays "
            "torch.as_tensor makes them; several inputs go into a tuple or a dict), or a dataset, "
            f"or a DataLoader, of such pairs: {short(given)}"
        )
