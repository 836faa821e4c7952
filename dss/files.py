"""Files that are whole or not there: atomic writing, and tensors with their values in one file."""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Built = TypeVar("Built")


def checked_path(path: str | os.PathLike, what: str = "path") -> Path:
    """A path on this machine.

    Args:
        path: as it was given.
        what: how the message calls it: `--out`.

    Raises:
        TypeError: neither text nor a path.
        ValueError: it is empty, an address (`s3://...`), or holds a null byte.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{what} is a {type(path).__name__}; text or a pathlib.Path is needed")
    text = os.fspath(path)
    if not text.strip():
        raise ValueError(f"{what} is empty (a variable that is not set?); a path is needed")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(f"{what} is {text!r}, an address; a path on this machine is needed")
    if "\0" in text:
        raise ValueError(f"{what} is {text!r}; it holds a null byte")
    return Path(text)


def check_target(path: str | os.PathLike) -> Path:
    """The file that `write` would write, behind links; an error where it plainly cannot.

    Raises:
        TypeError, ValueError: as in `checked_path`.
        OSError: a folder, a device, links in a circle; or its own folder is not there, no folder
            or cannot be written.
    """
    path = checked_path(path)
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, "links in a circle", str(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder; the name of a file is needed", str(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "neither a file nor a new name", str(path))
    if not target.parent.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", str(path))
    if not target.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "its folder is a file", str(path))
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "its folder cannot be written", str(path))
    return target


def write(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that it is never seen half-written; an OSError leaves the old one.

    A link stays a link, an old file keeps its permissions, and a new one gets those that the user's
    umask leaves.

    Raises:
        TypeError, ValueError, OSError: as in `check_target`; OSError too for a full disk, say.
            All name the path.
    """
    target = check_target(path)
    temporary = target.parent / f".{target.name[:40]}-{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:  # the system takes the umask off
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: str | os.PathLike, kind: str, tensors: Mapping[str, "Tensor"], values: Mapping
) -> Path:
    """Write tensors, bit for bit, and JSON values to one safetensors file.

    Args:
        path: of the file; its folder must exist.
        kind: name and version of the format: `dss-string-1`.
        tensors: by name, on any device.
        values: what JSON can hold.

    Returns:
        The path.

    Raises:
        TypeError, ValueError, OSError: as in `write`; an older file stays as it was.
    """
    import torch
    from safetensors.torch import save

    # safetensors takes no tensors that share memory, as x and y of an autoencoder do.
    contiguous = torch.contiguous_format
    tensors = {n: v.detach().cpu().clone(memory_format=contiguous) for n, v in tensors.items()}
    text, (_, what, _) = json.dumps(values), kind.split("-")
    write(path, save(tensors, {"format": kind, what: text, "sha256": _digest(tensors, text)}))
    return Path(path)


def load_tensors(path: str | os.PathLike, kind: str, build: Callable[[dict, dict], Built]) -> Built:
    """What `build(tensors, values)` makes of a file that `save_tensors` wrote.

    Raises:
        TypeError: path is neither text nor a path.
        OSError: the file cannot be read: there is none, or it is a folder.
        ValueError: the path is empty or an address; or the file is damaged, of another format, or
            refused by `build`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content, (_, what, _) = checked_path(path).read_bytes(), kind.split("-")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.get("format") != kind:
            raise ValueError(f"format is {metadata.get('format')!r}; {kind!r} is known")
        for name in (what, "sha256"):
            if name not in metadata:
                raise ValueError(f"{name} is missing in its metadata")
        values = json.loads(metadata[what])
        if not isinstance(values, dict):
            raise ValueError(
                f"its {what} is a {type(values).__name__}; names and values are needed"
            )
        built = build(tensors, values)
        if metadata["sha256"] != _digest(tensors, metadata[what]):
            raise ValueError("its content does not have the sha256 that it was saved with")
        return built
    except RecursionError as error:
        raise ValueError(f"{path} is not a readable {what} file: it is nested too deep") from error
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable {what} file: {error}") from error


def _digest(tensors: Mapping[str, "Tensor"], text: str) -> str:
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
