"""Published data sets on disk: known files, each checked, from the first place that has them."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dss.files import write

# What reading a file, an archive or a site can raise.
FAULTS = (OSError, ValueError, RuntimeError, KeyError, EOFError, tarfile.TarError)
FAULTS += (zipfile.BadZipFile,)

Read = TypeVar("Read")


@dataclass(frozen=True)
class Source:
    """Which copy of a data set is used.

    Attributes:
        kind: `"official"` for the published files, byte for byte, or what else it is.
        path: the folder of the files, or the one file.
        sha256: of the files one after the other, or of the file.
    """

    kind: str
    path: Path
    sha256: str


def first_of(readers: Iterable[Callable[[], Read]], between: str = "; ") -> Read:
    """What the first reader returns that does not fail; ValueError with all reasons if none."""
    failures = []
    for reader in readers:
        try:
            return reader()
        except FAULTS as error:
            failures.append(str(error))
    raise ValueError(between.join(failures))


def published(folder: Path, files: Sequence[tuple[str, str]]) -> Source:
    """Known files in a folder.

    Args:
        folder: that holds them.
        files: names with their md5.

    Raises:
        OSError: one is missing.
        ValueError: one is another file.
    """
    sha256 = hashlib.sha256()
    for name, md5 in files:
        content = (folder / name).read_bytes()
        if not _is(content, md5):
            raise ValueError(f"{folder / name}: {len(content)} bytes, not the published file")
        sha256.update(content)
    return Source("official", folder, sha256.hexdigest())


def install(
    content_of: Callable[[str], bytes], files: Sequence[tuple[str, str]], folder: Path, origin: str
) -> Source:
    """Write known files into a folder, each when its md5 is right.

    Args:
        content_of: gives the bytes of a name.
        files: names with their md5.
        folder: made where it is missing.
        origin: how messages call where the bytes come from.

    Raises:
        ValueError: one is another file; those before it are there.
    """
    for name, md5 in files:
        content = content_of(name)
        if not _is(content, md5):
            raise ValueError(f"{origin}: {name} is not the published file")
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / name, content)
    return published(folder, files)


def download(address: str, what: str) -> bytes:
    """The bytes at an address; ValueError, with how messages call it, where there are none."""
    from urllib.request import urlopen

    try:
        with urlopen(address, timeout=20) as response:
            return response.read()
    except OSError as error:
        raise ValueError(f"{what}: {error}") from error


def _is(content: bytes, md5: str) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
