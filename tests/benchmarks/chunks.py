"""How many networks should run side by side: milliseconds per network against the chunk size.

Prints one table and writes it to build/bench/chunks.csv.  Ratios within a run mean something;
single milliseconds on a shared machine do not.
"""

import statistics
import time
from pathlib import Path

import pandas as pd
import torch

import dss
import dss.task

CASES = [
    (dss.quad(), None, (1, 8, 64, 512, 4096)),
    (dss.mnist("mlp"), 128, (1, 4, 16, 64)),
    (dss.mnist("cnn"), 128, (1, 2, 4, 8, 16)),
    (dss.mnist("authors"), 128, (1, 2)),
]


def milliseconds(function, *arguments, repeats: int = 5) -> float:
    """Median wall time of a call, after one to warm up."""
    function(*arguments)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def main() -> None:
    """Measure gradients on a batch and losses on the evaluation set for each case."""
    rows = []
    for task, batch_size, sizes in CASES:
        task = task.to("auto")
        thetas = task.init(max(sizes))
        batch = slice(None) if batch_size is None else torch.arange(batch_size)
        generator = torch.Generator().manual_seed(0)
        default = dss.task.Task._chunks
        for size in (*sizes, None):
            if size is not None:
                dss.task.Task._chunks = lambda _task, n, _samples, size=size: [
                    slice(start, start + size) for start in range(0, n, size)
                ]
            train = milliseconds(task.gradients, thetas, batch, generator)
            evaluate = milliseconds(task.losses, thetas)
            dss.task.Task._chunks = default
            row = {"task": task.name, "networks": len(thetas), "chunk": size or "default"}
            row |= {"gradient_ms": train / len(thetas), "losses_ms": evaluate / len(thetas)}
            rows.append(row)
    table = pd.DataFrame(rows)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, device {task.device}")
    print(table.round(4).to_string(index=False))
    path = Path(__file__).resolve().parents[2] / "build" / "bench" / "chunks.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


if __name__ == "__main__":
    main()
