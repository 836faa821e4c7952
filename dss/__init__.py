"""Dynamic String Sampling: paths of low loss between trained networks."""

from dss.batchnorm import batch_statistics
from dss.certify import (
    Certificate,
    certify,
    certify_strings,
    load_certificate,
    save_certificate,
)
from dss.curve import compare_paths, interpolated_loss, losses_along, t_star
from dss.data import ensure_mnist
from dss.results import Results
from dss.sampling import find_string, find_strings, study
from dss.strings import String, load_string, save_string
from dss.sweeps import sweep
from dss.task import Task
from dss.tasks import digits, landscape, mnist, polynomial, quad
from dss.theta import flatten, interpolate, permute_units, points_along, shapes_of, unflatten
from dss.train import Endpoints, Trained, train_endpoints, train_to

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Endpoints",
    "Results",
    "String",
    "Task",
    "Trained",
    "batch_statistics",
    "certify",
    "certify_strings",
    "compare_paths",
    "digits",
    "ensure_mnist",
    "find_string",
    "find_strings",
    "flatten",
    "interpolate",
    "interpolated_loss",
    "landscape",
    "load_certificate",
    "load_string",
    "losses_along",
    "mnist",
    "permute_units",
    "points_along",
    "polynomial",
    "quad",
    "save_certificate",
    "save_string",
    "shapes_of",
    "study",
    "sweep",
    "t_star",
    "train_endpoints",
    "train_to",
    "unflatten",
]
