"""Files that are whole or not there: atomic writing, and tensors with their values in one file."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Built = TypeVar("Built")


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written; an OSError leaves the old one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save_tensors(path: Path, kind: str, tensors: Mapping[str, "Tensor"], values: Mapping) -> None:
    """Write tensors, bit for bit, and JSON values to one safetensors file.

    Args:
        path: of the file; its folder must exist.
        kind: name and version of the format: `dss-string-1`.
        tensors: by name, on any device.
        values: what JSON can hold.

    Raises:
        OSError: the folder cannot be written; an older file stays as it was.
    """
    import torch
    from safetensors.torch import save

    # safetensors takes no tensors that share memory, as x and y of an autoencoder do.
    contiguous = torch.contiguous_format
    tensors = {n: v.detach().cpu().clone(memory_format=contiguous) for n, v in tensors.items()}
    text, (_, what, _) = json.dumps(values), kind.split("-")
    write(path, save(tensors, {"format": kind, what: text, "sha256": _digest(tensors, text)}))


def load_tensors(path: Path, kind: str, build: Callable[[dict, dict], Built]) -> Built:
    """What `build(tensors, values)` makes of a file that `save_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another format, or refused by `build`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content, (_, what, _) = path.read_bytes(), kind.split("-")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        if metadata["format"] != kind:
            raise ValueError(f"format is {metadata['format']!r}; {kind!r} is known")
        built = build(tensors, json.loads(metadata[what]))
        if metadata["sha256"] != _digest(tensors, metadata[what]):
            raise ValueError("its content does not have the sha256 that it was saved with")
        return built
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable {what} file: {error}") from error


def _digest(tensors: Mapping[str, "Tensor"], text: str) -> str:
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
