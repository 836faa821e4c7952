"""How many networks may run side by side: what fits memory, and what is fast."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from dss.checks import check_whole

# Networks that are drawn at a time, at most.
MOST_NETWORKS = 2**40

# Activations that one chunk of networks may hold: a CPU's last-level cache, enough to fill a GPU.
# On CPUs a wide vmap makes large convolutional networks slower than one by one; this size runs
# thousands of QUAD networks side by side, six small CNNs and one of the authors' CNNs
# (`make bench` measures it).  Other devices count as GPUs.
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
# Norms, attention and blocks of one's own lose more under a wide vmap: to 2**21 such networks are
# faster side by side, beyond 2**22 they are not (`make bench`, own_networks).
MOST_OF_OTHERS = {"cpu": 2**21}

# Numbers of one network and its activations in a gradient, below which a CPU core takes less time
# for it than an H200 for its calls: a QUAD network takes 0.2 ms against 0.6, an MLP of MNIST 0.5
# against 1.2, a small CNN 4.2 against 1.6 ms (`make bench`, roofline and chunks).
LEAST_FOR_GPU = 2**18

Result = TypeVar("Result")


@dataclass(eq=False)
class Budget:
    """What work on a task may hold at a time.

    Attributes:
        n_params: P, numbers in one network.
        device: where they are held.
        memory: MiB for all that is held, beside strings; None: a quarter of what is free, and
            activations that fill a cache or a GPU.
        n_activations: numbers that one sample's activations hold in one network, input included.
        n_fixed: numbers that a network holds whatever the sample.
        stacks: whether networks can run side by side at all.
        is_plain: whether they are plain sequences of linear layers and convolutions.
        most: activations and parameters with which work side by side has run out of memory; this
            budget learns it on the way.
    """

    n_params: int
    device: torch.device
    memory: float | None = None
    n_activations: int = 1
    n_fixed: int = 0
    stacks: bool = True
    is_plain: bool = True
    most: float = math.inf

    def rows_that_fit(self, copies: int, dtype: torch.dtype) -> int:
        """How many networks fit when each takes `copies` flat vectors; one at the least."""
        available = free_memory(self.device) / 4 if self.memory is None else self.memory * 2**20
        return max(1, int(available / (copies * self.n_params * dtype.itemsize)))

    def chunk_elements(self, dtype: torch.dtype) -> float:
        """Numbers that networks side by side may hold, activations and parameters."""
        limit = CHUNK_ELEMENTS.get(self.device.type, CHUNK_ELEMENTS["cuda"])
        if not self.is_plain:
            limit = min(limit, MOST_OF_OTHERS.get(self.device.type, limit))
        if self.memory is not None:  # each held three times: results, gradients, temporaries
            limit = min(limit, self.memory * 2**20 / (3 * dtype.itemsize))
        return min(limit, self.most)

    def check_room(self, n: int, name: str, dtype: torch.dtype) -> int:
        """`n` as an int; ValueError where so many networks are more than memory holds.

        Args:
            n: how many.
            name: how the message calls it.
            dtype: of the networks.

        Raises:
            TypeError: no number.
            ValueError: not whole, < 1, or too many.
        """
        n = check_whole(n, name, 1, MOST_NETWORKS)
        needed, free = n * self.n_params * dtype.itemsize, free_memory(self.device)
        if needed > free:
            raise ValueError(
                f"{name} is {n}; that takes {needed / 2**30:.3g} GiB for the networks alone, and "
                f"{free / 2**30:.3g} GiB are free"
            )
        return n

    def check_bead(self, copies: int, n_samples: int, dtype: torch.dtype) -> None:
        """Raise ValueError where one network that descends is more than memory holds.

        Layers that work in place, and those that only reshape, were counted as activations too, so
        that half of them is what it takes at the least.

        Args:
            copies: flat vectors that are held for it.
            n_samples: samples in a gradient step.
            dtype: of the network.
        """
        vectors = copies * self.n_params * dtype.itemsize
        activations = self.activations_of(n_samples) * dtype.itemsize / 2
        free = free_memory(self.device)
        if vectors + activations > free:
            raise ValueError(
                f"one bead takes {(vectors + activations) / 2**30:.3g} GiB at the least while it "
                f"descends: {vectors / 2**30:.3g} GiB for {copies} vectors of {self.n_params:,} "
                f"parameters, {activations / 2**30:.3g} GiB for the activations of {n_samples:,} "
                f"samples; {free / 2**30:.3g} GiB are free on {self.device}. What helps: a smaller "
                "batch_size (and a smaller eval_chunk to measure losses), or a machine with more "
                "memory"
            )

    def activations_of(self, n_samples: int) -> int:
        """Numbers that the activations of one network hold."""
        return n_samples * self.n_activations + self.n_fixed

    def side_by_side(self, n_samples: int, dtype: torch.dtype) -> int:
        """How many networks run side by side, at most, when each sees `n_samples` at a time."""
        fit = int(self.chunk_elements(dtype) / self._elements(n_samples))
        return max(1, fit) if self.stacks else 1

    def _elements(self, n_samples: int) -> int:
        """Numbers that one network holds."""
        return self.activations_of(n_samples) + self.n_params

    def gains_on_gpu(self, n_samples: int) -> bool:
        """Whether a gradient of one network on `n_samples` is worth a GPU's calls."""
        return self._elements(n_samples) >= LEAST_FOR_GPU

    def by_rows(
        self, work: Callable[[slice], Result], n: int, n_samples: int, dtype: torch.dtype
    ) -> list[Result]:
        """`work` on groups of n rows that run side by side; out of CUDA memory, on halves of them.

        Args:
            work: is given the rows of a group.
            n: rows, one for each network.
            n_samples: samples that each network sees at a time.
            dtype: of the networks.

        Returns:
            What `work` returns for each group, in order.

        Raises:
            torch.OutOfMemoryError: one network alone does not fit.
        """
        size, per_network = self.side_by_side(n_samples, dtype), self._elements(n_samples)
        size = math.ceil(n / max(1, math.ceil(n / size)))  # of even sizes
        start, results = 0, []
        while start < n:
            try:
                results.append(work(slice(start, min(start + size, n))))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = math.ceil(size / 2)
                self.most = size * per_network
            else:
                start += size
        return results


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take on a device, 64 MiB at the least.

    Devices of which torch does not tell it share the machine's memory, as Apple's do.
    """
    of_kind = getattr(torch, device.type, None)
    if hasattr(of_kind, "mem_get_info"):
        own_cache = of_kind.memory_reserved(device) - of_kind.memory_allocated(device)
        return max(2**26, of_kind.mem_get_info(device)[0] + own_cache)
    info, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not info.exists():  # not Linux: say 4 GiB
        return 2**32
    free = 1024 * int(re.search(r"MemAvailable: +(\d+)", info.read_text(encoding="utf-8"))[1])
    limit = group / "memory.max"
    if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
        # Files that were read count as used, but make way.
        files = re.search(r"(?m)^file (\d+)", (group / "memory.stat").read_text(encoding="utf-8"))[
            1
        ]
        used = int((group / "memory.current").read_text(encoding="utf-8")) - int(files)
        free = min(free, int(text) - used)
    return max(2**26, free)
