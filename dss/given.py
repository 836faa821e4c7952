"""What commands are given: places on this machine, and JSON files that are what they must be."""

import json
from pathlib import Path

from dss.files import checked_path


def path_from(text: str | Path, what: str) -> Path:
    """A path on this machine, `~` and links resolved.

    Args:
        text: as it was given.
        what: how the message calls it: `--out`.

    Raises:
        ValueError: as in `dss.files.checked_path`, or a path that the locale cannot spell, so that
            no notebook could hold it.
    """
    path = checked_path(text, what)
    if str(text).encode(errors="ignore").decode() != str(text):
        raise ValueError(
            f"{what} is {str(text)!r} in this locale; one with UTF-8 is needed (LC_ALL)"
        )
    return path.expanduser().resolve()


def folder_from(text: str | Path, what: str) -> Path:
    """A folder on this machine, which may not be there yet.

    Raises:
        ValueError: as `path_from` does, or there is something else at that path.
    """
    path = path_from(text, what)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            which = "which" if place == path else f"and {place}"
            raise ValueError(f"{what} is {str(path)!r}, {which} is a file; a folder is needed")
    return path


def json_from(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: the file holds none, or one that is nested too deeply.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; a JSON object is needed")
    return value


def manifest_from(folder: Path) -> dict[str, dict]:
    """The entries of `manifest.json` in a folder, by figure; none where it has no manifest.

    Raises:
        ValueError: the file is not a manifest.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    entries = json_from(path)
    for figure, entry in entries.items():
        for name, kind in (("notebook", str), ("tables", dict)):
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise ValueError(f"{path} is no manifest: {figure!r} has no {name}")
    return entries
