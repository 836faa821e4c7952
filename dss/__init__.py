"""Dynamic String Sampling: paths of low loss between trained networks."""

from importlib import import_module

__version__ = "0.1.0"

# Where each public name lives.  Its module is imported when the name is first used, so that the
# command `dss` does not wait for torch.
HOMES = {
    "Certificate": "proofs.certify",
    "Gamma_tilde": "curve",
    "Results": "results",
    "String": "strings",
    "Task": "task",
    "batch_statistics": "networks.batchnorm",
    "certify": "proofs.certify",
    "certify_strings": "proofs.certify",
    "cifar10": "tasks",
    "compare_paths": "curve",
    "digits": "tasks",
    "find_string": "sampling",
    "find_strings": "sampling",
    "flatten": "theta",
    "interpolate": "theta",
    "interpolated_loss": "curve",
    "landscape": "tasks",
    "losses_along": "curve",
    "mnist": "tasks",
    "polynomial": "tasks",
    "ptb": "tasks",
    "quad": "tasks",
    "study": "studies",
    "sweep": "runs.grid",
    "t_star": "curve",
    "tighten": "geometry.tighten",
    "train_endpoints": "train",
    "train_to": "train",
}
__all__ = sorted(HOMES)


def __getattr__(name: str):
    """A public name, or a module of the package."""
    if name.startswith("_"):
        raise AttributeError(f"module 'dss' has no attribute {name!r}")
    if name in HOMES:
        found = getattr(import_module(f"dss.{HOMES[name]}"), name)
        globals()[name] = found
        return found
    try:
        return import_module(f"dss.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"dss.{name}":
            raise
        raise AttributeError(f"module 'dss' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
