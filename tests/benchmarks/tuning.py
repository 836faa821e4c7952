"""The learning rate of each method of notebook 15: all trials, and what they say.

    python tests/benchmarks/tuning.py [--out FILE] [NETWORK ...]

Every method tries as many rates on the same pairs, which notebook 15 never sees: its seeds begin
at 0, these at 100.  A row is written as soon as its trial ends; a run that was killed goes on with
the next one.  Half an hour on a core for each kind of network of MNIST, minutes for the others.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import dss
from dss.geometry.neighbours import auto_neb, bezier, layer_wise, one_bend
from dss.problems import corners
from dss.theta import permute_units

TRIALS = Path(__file__).with_suffix(".csv")
SEEDS = (100, 101, 102, 103)  # one pair of each at each threshold
L0 = {  # two of the three at paper size for images
    "mnist mlp": (0.3, 0.2),
    "mnist cnn": (0.3, 0.2),
    "QUAD": (0.001, 0.0001),
    "cycle": (0.02,),
}
N_EVAL = 250
OF_IMAGES = {"max_steps": 1500, "patience": 1000, "check_every": 25}
OF_WHOLE = {"max_steps": 2000, "patience": 2000, "check_every": 10}  # QUAD, cycles: whole batches
LIMITS = {"mnist mlp": OF_IMAGES, "mnist cnn": OF_IMAGES, "QUAD": OF_WHOLE, "cycle": OF_WHOLE}
# Rates were added, for all methods of a kind, until the best of none was the highest of all.
N_RATES = {"mnist mlp": 8, "mnist cnn": 7, "QUAD": 9, "cycle": 10}
ADAM = {"optimizer": "adam", "lr": 0.01}
LOWEST = {"nesterov": 0.00375, "adam": 0.0005, "adam, whole": 0.00125}  # the next ones double
RIVALS = {"Bezier": bezier, "one bend": one_bend, "AutoNEB": auto_neb, "layer by layer": layer_wise}
METHODS = {"DSS, paper": (dss.find_string, {"optimizer": "adam"})}
METHODS["DSS, averaged"] = (dss.find_string, {"method": "averaged"})
METHODS |= {name: (find, {}) for name, find in RIVALS.items()}
METHODS |= {f"{name}, averaged": (find, {"averaged": True}) for name, find in RIVALS.items()}
KEYS = ["network", "L0", "seed", "pair", "method", "lr"]
COLUMNS = [*KEYS, "connected", "gradient_steps", "charged", "normalized_length"]


def methods_of(network: str) -> list[str]:
    """Whole batches have no noise, which means could take out."""
    n_plain = len(RIVALS) + 2
    return list(METHODS)[: None if network.startswith("mnist") else n_plain]


def rates_of(network: str, method: str) -> list[float]:
    """The rates that a method tries, lowest first."""
    if not network.startswith("mnist"):
        lowest = LOWEST["adam, whole"]
    else:
        lowest = LOWEST["adam" if method == "DSS, paper" else "nesterov"]
    return [lowest * 2**k for k in range(N_RATES[network])]


def pairs_of(network: str, seed: int):
    """The task, and of each threshold the first pair of networks that reaches it, `(2, P)`."""
    by = [torch.Generator().manual_seed(1000 * seed + k) for k in range(len(L0[network]))]
    if network == "cycle":
        task, training = corners(), ADAM
    elif network == "QUAD":
        task, training = dss.quad(), dss.quad().train_settings
    else:
        task = dss.mnist(network=network.split()[1], n_eval=N_EVAL)
        training = task.train_settings
    n = 2 if network.startswith("mnist") else 32
    ends = {}
    for value, generator in zip(L0[network], by, strict=True):
        low = value / 2 if network == "cycle" else value
        training = {"max_steps": 3000, "fewer": True} | training
        thetas = dss.train_endpoints(task, n, [low], generator, **training).thetas[0]
        thetas = thetas[task.losses(thetas) <= value][:2]
        if network == "cycle" and len(thetas):
            thetas = torch.cat([thetas[:1], permute_units(task.module, thetas[:1], [1, 2, 0])])
        if len(thetas) == 2:
            ends[value] = thetas
    return task, ends


def attempt(task, network: str, two: torch.Tensor, value: float, method: str, lr: float) -> dict:
    """One search between networks `(2, P)`; one that spends more than is allowed has failed."""
    (find, options), limits = METHODS[method], LIMITS[network]
    own = task.settings if method == "DSS, paper" else {}
    own = own | ({} if network.startswith("mnist") else ADAM) | options | limits | {"lr": lr}
    path = find(task, *two, value, generator=torch.Generator().manual_seed(0), **own)
    is_within = path.connected and path.gradient_steps <= limits["max_steps"]
    return {
        "connected": is_within,
        "gradient_steps": path.gradient_steps,
        "charged": path.gradient_steps if is_within else limits["max_steps"],
        "normalized_length": f"{path.normalized_length:.6g}",
    }


def trials(network: str, done: set):
    """The rows of all trials of a kind of network that are not done yet."""
    for seed in SEEDS:
        task, ends = pairs_of(network, seed)
        for value, two in ends.items():
            for method in methods_of(network):
                for lr in rates_of(network, method):
                    key = (network, value, seed, 0, method, lr)
                    if key not in done:
                        row = attempt(task, network, two, value, method, lr)
                        yield dict(zip(KEYS, key, strict=True)) | row


def picks(table: pd.DataFrame) -> pd.Series:
    """The rate of each network and method: least geometric mean of what was charged.

    All thresholds and pairs count alike.  Where two cost the same, the one that connects more, then
    the one whose paths are shorter.  A method that connects nothing at any rate has no pick.
    """
    table = table.assign(log=np.log(table.charged.clip(lower=1)), failed=~table.connected)
    scores = {"log": "mean", "failed": "mean", "normalized_length": "mean"}
    scored = table.groupby(["network", "method", "lr"], as_index=False).agg(scores)
    scored = scored[scored.groupby(["network", "method"]).failed.transform("min") < 1]
    scored = scored.sort_values(list(scores), kind="stable")
    return scored.groupby(["network", "method"]).lr.first()


def main() -> None:
    """Run what is missing, and print the picks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--out", type=Path, default=TRIALS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.out.exists():
        arguments.out.write_text(",".join(COLUMNS) + "\n")
    done = set(pd.read_csv(arguments.out)[KEYS].itertuples(index=False, name=None))
    for network in arguments.networks or L0:
        for row in trials(network, done):
            with open(arguments.out, "a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
    table = pd.read_csv(arguments.out)
    print(picks(table).unstack("network").reindex(list(METHODS)))


if __name__ == "__main__":
    main()
