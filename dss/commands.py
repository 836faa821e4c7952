"""The commands of `dss`, one function each; what they do is done in `dss.runs`."""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated

import typer

app = typer.Typer(
    help="Companion to Freeman & Bruna (2016): Dynamic String Sampling.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Size(StrEnum):
    """How much a notebook computes."""

    quick = "quick"
    paper = "paper"


class Device(StrEnum):
    """Where a notebook computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dataset(StrEnum):
    """Which data are fetched."""

    mnist = "mnist"
    cifar10 = "cifar10"
    ptb = "ptb"


Names = Annotated[list[str] | None, typer.Argument(help="Notebooks; all by default.")]
OnDevice = Annotated[Device, typer.Option(help="auto takes CUDA if there is.")]
CellTimeout = Annotated[int | None, typer.Option(help="Seconds for one cell.")]
Jobs = Annotated[int | None, typer.Option(help="Side by side; one for each core by default.")]

SECONDS_TO_ANSWER = 10  # after which a scheduler that says nothing counts as none


@app.command()
def data(
    name: Annotated[Dataset, typer.Argument(help="Which data.")] = Dataset.mnist,
) -> None:
    """Fetch MNIST, CIFAR-10 or the Penn Treebank into data/ and check it byte for byte."""
    from dss.cifar import ensure_cifar10
    from dss.data import ensure_mnist
    from dss.treebank import ensure_ptb

    with errors_told():
        if name is Dataset.mnist:
            typer.echo(f"MNIST is complete in {ensure_mnist()}")
            return
        is_images = name is Dataset.cifar10
        source = ensure_cifar10() if is_images else ensure_ptb()
        called = "CIFAR-10" if is_images else "The Penn Treebank"
        typer.echo(f"{called} ({source.kind}) is complete in {source.path}")
        typer.echo(f"sha256 {source.sha256}")


@app.command()
def reproduce(
    names: Names = None,
    size: Annotated[Size, typer.Option(help="quick: minutes on a laptop.")] = Size.quick,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="Override a notebook parameter."),
    ] = None,
    device: OnDevice = Device.auto,
    out: Annotated[str | None, typer.Option(help="Folder instead of figures/.")] = None,
    cell_timeout: CellTimeout = None,
    save_outputs: Annotated[
        bool, typer.Option("--save-outputs", help="Write outputs back into notebooks/.")
    ] = False,
    jobs: Jobs = None,
) -> None:
    """Execute notebooks and regenerate their tables and figures."""
    from dss.runs import reproduce as runs

    after = "stopped; finished notebooks are in place, and the same command goes on"
    with errors_told(after):
        outcomes = runs.reproduce(
            names=list(names or []),
            size=size.value,
            parameters=_values(parameter or []),
            device=device.value,
            out=out,
            cell_timeout=cell_timeout,
            save_outputs=save_outputs,
            jobs=jobs,
        )
    typer.echo(f"\n{'notebook':<18}{'seconds':>8}  figures written")
    for outcome in outcomes:
        what = f"FAILED in {outcome.error}" if outcome.error else len(outcome.figures)
        seconds = "before" if outcome.seconds is None else f"{outcome.seconds:.1f}"
        typer.echo(f"{outcome.name:<18}{seconds:>8}  {what}")
    compared = [outcome for outcome in outcomes if outcome.compared]
    if compared:
        typer.echo(f"\ncompared with figures/{size.value}/ as it was, by the rules of dss verify")
    for outcome in compared:
        typer.echo(f"  {outcome.name:<18}{outcome.compared}")
    failed = [outcome.name for outcome in outcomes if outcome.error]
    if failed:
        for outcome in outcomes:
            if outcome.kept:
                typer.echo(
                    f"what {outcome.name} made until it failed is in {outcome.kept}/", err=True
                )
        _fail(
            f"{len(failed)} of {len(outcomes)} notebooks failed: {', '.join(failed)}; "
            "their earlier figures are untouched"
        )


@app.command()
def verify(
    names: Names = None,
    size: Annotated[Size, typer.Option(help="Which figures to verify.")] = Size.quick,
    device: OnDevice = Device.auto,
    committed: Annotated[str | None, typer.Option(help="Folder instead of figures/.")] = None,
    cell_timeout: CellTimeout = None,
    jobs: Jobs = None,
) -> None:
    """Run notebooks again, elsewhere, and compare every table with the committed one."""
    from dss.runs import verify as runs

    with errors_told("stopped; nothing was changed"):
        columns = runs.verify(
            names=list(names or []),
            size=size.value,
            device=device.value,
            committed=committed,
            cell_timeout=cell_timeout,
            jobs=jobs,
        )
    for (notebook, table), rows in columns.groupby(["notebook", "table"], sort=False):
        typer.echo(f"\n{table or notebook}")
        for row in rows.itertuples():
            measured = row.distance is not None and row.distance == row.distance  # no NaN
            distance = f"{row.distance:.2g}" if measured else ""
            typer.echo(f"  {row.column:<34}{row.rule:<16}{distance:>9}  {row.verdict}")
    counts = columns.verdict.value_counts()
    typer.echo("\n" + ", ".join(f"{n} columns {verdict}" for verdict, n in counts.items()))
    if "DIFFERS" in counts:
        raise typer.Exit(1)


@app.command()
def strings(
    names: Annotated[list[str] | None, typer.Argument(help="Examples; all by default.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder instead of figures/strings/.")] = None,
) -> None:
    """Find the strings of figures/strings/ again, prove them, and write what walk.md draws."""
    from dss.runs.examples import make

    with errors_told("stopped; strings that were named are in place"):
        for name, entry in make(names, out):
            string = entry["string"]
            status, beads, seconds = string["status"], string["n_beads"], entry["seconds"]
            typer.echo(f"{name:<18}{status}, {beads} beads, in {seconds:.0f} s")


@app.command()
def sweep(
    notebook: Annotated[str, typer.Argument(help="A name, or the path of a notebook.")],
    grid: Annotated[
        list[str],
        typer.Option(metavar="NAME=V1,V2,...", help="Values of a parameter; may be repeated."),
    ],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="The same for all jobs."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes on this machine; one per core by default.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of dask.distributed; for --jobs.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder; by default runs/sweeps/NOTEBOOK.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="Which table to put together; the first by default.")
    ] = None,
    cell_timeout: CellTimeout = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished jobs again.")] = False,
) -> None:
    """Run a notebook at every point of a grid; finished jobs are never run again."""
    for name in ("distributed", "pyarrow"):
        if find_spec(name) is None:
            _fail(f"{name} is missing; install the sweep extra: pip install .[notebooks,sweep]")
    from dss.runs import sweeps as runs

    again = "the same command" + (" (without --force)" if force else "") + " goes on"
    there = "; jobs that began on its workers run to their end" if scheduler else ""
    with errors_told(f"stopped; what is finished stays, and {again}{there}"):
        if scheduler is not None and jobs is not None:
            raise ValueError("--jobs starts processes here, --scheduler uses others: one")
        with _client_of(scheduler) as client:
            swept = runs.sweep_notebook(
                notebook=notebook,
                grid=_values(grid, "--grid"),
                parameters=_values(parameter or []),
                client=client,
                jobs=jobs,
                out=out,
                table=table,
                cell_timeout=cell_timeout,
                force=force,
            )
    n_failed = len(swept.errors)
    typer.echo(
        f"\n{swept.n_jobs} jobs: {swept.n_jobs - n_failed} succeeded ({swept.n_before} of them "
        f"before), {n_failed} failed; {len(swept.table)} rows in {swept.out}/sweep.csv"
    )
    for key, error in list(swept.errors.items())[:10]:
        typer.echo(f"  jobs/{key}  {error}", err=True)
    if n_failed:
        _fail(
            f"{n_failed} of {swept.n_jobs} jobs failed; the same command runs them again; until "
            f"then {swept.out}/jobs/<job>/ keeps what they made, executed.ipynb too"
        )


@app.command("check-certificate")
def check_certificate(
    file: Annotated[str, typer.Argument(help="Written by Certificate.save.")],
    string: Annotated[
        str | None, typer.Option(help="The certificate must be of this string file.")
    ] = None,
) -> None:
    """Check what a certificate claims, with other code than what made it.

    It claims something of the networks, layers and samples in the file.  That the networks are
    those of a string is checked with --string; samples are only counted.
    """
    from dss.given import path_from
    from dss.proofs.certify import Certificate
    from dss.proofs.checker import check_certificate as check

    with errors_told():
        path_from(file, "FILE")
        if string is not None:
            path_from(string, "--string")
        reasons = check(file, string)
        certificate = None if reasons else Certificate.load(file)
    for reason in reasons:
        typer.echo(f"dss: {reason}", err=True)
    if certificate is None:
        typer.echo("rejected")
        raise typer.Exit(1)
    for name, value in certificate.summary().items():
        if name != "n_bounded":  # a claim about the prover, which nobody can check
            typer.echo(f"{name:<20}{value}")
    verdict = "refuted" if certificate.refuted else "undecided"
    typer.echo(f"confirmed: {'proved' if certificate.proved else verdict}")


@contextmanager
def errors_told(after_interrupt: str = "stopped", name: str = "dss") -> Iterator[None]:
    """An expected error becomes one line and exit status 1; Ctrl-C a line and 130, SIGTERM 143."""
    try:
        with terminated_as_interrupted():
            yield
    except typer.Exit:
        raise
    except RecursionError:
        _fail("what was given is nested too deeply", name)
    except (ValueError, RuntimeError, OSError) as error:
        _fail(error, name)
    except KeyboardInterrupt as interrupt:
        typer.echo(f"\n{name}: {after_interrupt}", err=True)
        raise typer.Exit(143 if isinstance(interrupt, Terminated) else 130) from None


def run(commands: typer.Typer, name: str) -> None:
    """Run a command line; what it says may meet a full disk, too."""
    try:
        commands(prog_name=name)
    except OSError as error:
        sys.exit(f"{name}: {error}")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends what runs as Ctrl-C does."""


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """In the block the first SIGTERM raises `Terminated` in the main thread; others are ignored."""

    def terminate(*_) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _fail(error, name: str = "dss") -> None:
    typer.echo(f"{name}: {error}", err=True)
    raise typer.Exit(1)


def _values(pairs: list[str], option: str = "-p") -> dict:
    """Texts by name, from NAME=VALUE, as they were typed."""
    from dss.parameters import Text

    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            form = "NAME=V1,V2,..." if option == "--grid" else "NAME=VALUE"
            raise ValueError(f"{option} {pair}: {form} is needed")
        if name in values:
            raise ValueError(f"{option} {name} is given twice")
        values[name] = Text(text)
    return values


@contextmanager
def _client_of(scheduler: str | None) -> Iterator:
    """A client of the scheduler at an address, closed at the end; None without an address."""
    if scheduler is None:
        yield None
        return
    from distributed.comm import connect

    from dss.runs.grid import client_of

    async def greet() -> None:  # dask waits for good where something listens and says nothing
        async with asyncio.timeout(SECONDS_TO_ANSWER):
            comm = await connect(scheduler, timeout=SECONDS_TO_ANSWER)
        await comm.close()

    with ExitStack() as stack:
        try:
            asyncio.run(greet())
            client = stack.enter_context(client_of(scheduler, SECONDS_TO_ANSWER))
        except (OSError, ValueError) as error:
            reason = str(error) or f"nothing within {SECONDS_TO_ANSWER} s"
            raise ValueError(f"no scheduler answers at {scheduler}: {reason}") from error
        yield client
