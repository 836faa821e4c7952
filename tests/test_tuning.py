"""The learning rates of notebook 15 are what its committed trials say."""

import ast
import sys
from dataclasses import asdict

import pandas as pd
import pytest
from claims import prose_of

from dss.averaged import OF_BATCHES
from dss.descent import Training
from dss.runs.execute import NOTEBOOKS

sys.path.insert(0, str(NOTEBOOKS.parent / "tests" / "benchmarks"))
import tuning  # noqa: E402

NOTEBOOK = NOTEBOOKS / "15_neighbours.ipynb"
WORDS = {7: "seven", 8: "eight", 9: "nine", 10: "ten"}


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    return pd.read_csv(tuning.TRIALS)


@pytest.fixture(scope="module")
def rates_of_notebook() -> dict[str, dict[str, float]]:
    """By network and method, from the literals of the notebook's two tables of rates."""
    import nbformat

    cells = [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    columns = {}
    for node in (n for cell in cells for n in ast.walk(ast.parse(cell))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("rates"):
            columns |= ast.literal_eval(node.value.args[0])
    networks = {"mlp": "mnist mlp", "cnn": "mnist cnn", "QUAD": "QUAD", "cycle": "cycle"}
    return {
        networks[name]: dict(zip(tuning.methods_of(networks[name]), rates, strict=True))
        for name, rates in columns.items()
    }


@pytest.mark.parametrize("network", tuning.L0)
def test_every_method_tries_as_many_rates_on_the_same_pairs(network, trials):
    of_network = trials[trials.network == network]
    pairs = of_network[["L0", "seed", "pair"]].drop_duplicates()
    assert pairs.seed.min() >= 100 and set(pairs.L0) == set(tuning.L0[network])
    assert len(pairs) == len(tuning.SEEDS) * len(tuning.L0[network])
    expected = [
        (*pair, method, lr)
        for pair in pairs.itertuples(index=False, name=None)
        for method in tuning.methods_of(network)
        for lr in tuning.rates_of(network, method)
    ]
    done = of_network[["L0", "seed", "pair", "method", "lr"]].itertuples(index=False, name=None)
    assert sorted(done) == sorted(expected)


def test_every_failure_is_charged_the_same(trials):
    most = trials.network.map(lambda network: tuning.LIMITS[network]["max_steps"])
    assert (trials.gradient_steps[trials.connected] <= most[trials.connected]).all()
    assert (trials.charged == trials.gradient_steps.where(trials.connected, most)).all()


def test_the_rates_of_the_notebook_are_the_picks_and_inside_the_grid(trials, rates_of_notebook):
    picks = tuning.picks(trials)
    assert rates_of_notebook.keys() == tuning.L0.keys()
    for network, rates in rates_of_notebook.items():
        for method, rate in rates.items():
            assert rate == picks[network, method], (network, method)
            assert rate in tuning.rates_of(network, method)[1:-1], (network, method)
    assert OF_BATCHES["lr"] in tuning.rates_of("mnist mlp", "DSS, averaged")


def test_the_notebook_says_how_the_rates_were_tuned(trials):
    prose, n, picks = prose_of(NOTEBOOK), tuning.N_RATES, tuning.picks(trials)
    own, most = picks.xs("DSS, averaged", level="method"), tuning.OF_IMAGES["max_steps"]
    seeds, whole = f"seeds {min(tuning.SEEDS)} to {max(tuning.SEEDS)}", tuning.L0["QUAD"]
    bends = trials[(trials.network == "QUAD") & (trials.method == "one bend") & trials.connected]
    for said in (
        f"{WORDS[n['mnist mlp']]} rates between MLPs of MNIST and {WORDS[n['mnist cnn']]} between",
        f"({seeds}, {tuning.N_EVAL} digits, {most:,} gradients at most)",
        f"is {own['mnist mlp']:g} for MLPs and {own['mnist cnn']:g} for CNNs",
        f"{WORDS[n['QUAD']]} and {WORDS[n['cycle']]} rates, at the thresholds {whole[0]:g} and "
        f"{whole[1]:g} and at {tuning.L0['cycle'][0]:g}, on {seeds}",
        f"every {tuning.OF_IMAGES['check_every']} gradients",
        f"The default rate of the variant, {OF_BATCHES['lr']:g}",
    ):
        assert said in prose, said
    assert len(bends) == 1 and "One bend connects one of eight such pairs" in prose


def test_a_pick_is_the_cheapest_then_what_connects_more_then_the_shorter():
    rows = [(0.1, 50, True, 9.0), (0.2, 20, False, 1.0), (0.4, 20, True, 2.0), (0.8, 20, True, 1.5)]
    table = pd.DataFrame(rows, columns=["lr", "charged", "connected", "normalized_length"])
    table = table.assign(network="net", method="some")
    assert tuning.picks(table)["net", "some"] == 0.8
    assert tuning.picks(table.assign(connected=False)).empty


def test_the_limits_are_settings_of_training():
    for limits in tuning.LIMITS.values():
        assert asdict(Training(**limits)).items() >= limits.items()
