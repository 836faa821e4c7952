"""Dynamic String Sampling: paths of low loss between trained networks."""

from dss.curve import Gamma_tilde, compare_paths, interpolated_loss, losses_along, t_star
from dss.networks.batchnorm import batch_statistics
from dss.proofs.certify import Certificate, certify, certify_strings
from dss.results import Results
from dss.runs.grid import sweep
from dss.sampling import find_string, find_strings
from dss.strings import String
from dss.studies import study
from dss.task import Task
from dss.tasks import digits, landscape, mnist, polynomial, quad
from dss.theta import flatten, interpolate
from dss.train import train_endpoints, train_to

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Gamma_tilde",
    "Results",
    "String",
    "Task",
    "batch_statistics",
    "certify",
    "certify_strings",
    "compare_paths",
    "digits",
    "find_string",
    "find_strings",
    "flatten",
    "interpolate",
    "interpolated_loss",
    "landscape",
    "losses_along",
    "mnist",
    "polynomial",
    "quad",
    "study",
    "sweep",
    "t_star",
    "train_endpoints",
    "train_to",
]
