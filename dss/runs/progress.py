"""One readable line about notebooks that run side by side."""

import sys
import threading


class Progress:
    """One line that says how many notebooks and cells have ended, and which notebooks run.

    Args:
        n_cells: cells of the notebooks that are to be run, by name.
        n_runs: all notebooks of the call, those that had ended before included.
    """

    def __init__(self, n_cells: dict[str, int], n_runs: int):
        from tqdm.auto import tqdm

        self.lock, self.running = threading.Lock(), set()
        self.left = dict(n_cells)
        self.n_runs, self.n_ended = n_runs, n_runs - len(n_cells)
        every = 0.1 if sys.stderr.isatty() else 10  # a log shows each update as a line
        self.bar = tqdm(total=sum(self.left.values()), unit="cell", mininterval=every)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def cell(self, name: str) -> None:
        """A cell of a notebook has ended."""
        with self.lock:
            self.running.add(name)
            self.left[name] -= 1
            self._show(1)

    def ended(self, name: str, error: str) -> None:
        """A notebook has ended, whether or not all of its cells were run; "" for no error."""
        with self.lock:
            self.running.discard(name)
            self.n_ended += 1
            self._show(self.left.pop(name))
            if error:
                self.say(f"{name} failed in {error}")

    def say(self, what: str) -> None:
        """Write a line above the bar."""
        self.bar.write(f"dss: {what}", sys.stderr)

    def _show(self, n: int) -> None:
        self.bar.set_description(f"{self.n_ended} of {self.n_runs} notebooks", refresh=False)
        self.bar.set_postfix_str(", ".join(sorted(self.running)), refresh=False)
        self.bar.update(n)
