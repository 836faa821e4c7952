"""What students get, in one archive: the released notebooks and all that is needed to run them."""

import io
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from dss.files import write

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "dss-assignments"  # of the archive
NOTEBOOK = ["ipykernel", "jupyterlab"]  # opens notebooks; the rest is what dss itself needs

README = """# Assignments: Dynamic String Sampling

Notebooks: {notebooks}. `{wheel}` is the package
`dss` that they import, `requirements.txt` what both need. No other data is needed.

Work through a notebook from top to bottom. Restart the kernel and run all cells. Hand in that one
file. Its name does not matter, the marks in its cells do: fill in the cells that are there, and do
not copy them into a new notebook.

## Your own computer

You need Python 3.11 or later. Unpack the archive, open a terminal in its folder, and type

    python3 -m venv venv
    source venv/bin/activate          # Windows: venv\\Scripts\\activate
    pip install -r requirements.txt
    jupyter lab

On Linux, pip's PyTorch brings several gigabytes for graphics cards. They are not needed. PyTorch's
own page says how to install the version for processors; do that first, and take the number that
`requirements.txt` names: pip replaces every other.

## JupyterHub

Upload the archive, and type in a terminal there:

    unzip students.zip && cd {folder}
    python3 -m venv ~/dss-venv
    ~/dss-venv/bin/pip install -r requirements.txt
    ~/dss-venv/bin/python -m ipykernel install --user --name dss

Open a notebook and choose the kernel `dss`. Where you have no terminal, put `%pip install {wheel}`
into a new cell at the top, run it once, and restart the kernel.

## Google Colab

Open the notebook (File > Upload notebook). Upload `{wheel}` in the panel Files
at the left. Put this into a new cell at the top, and run it each time you come back:

    %pip install {wheel}

It uses the PyTorch that Colab has; 2.6 or later is needed. Download what you hand in as `.ipynb`.

## When something is wrong

`import dss` fails: the kernel is not of the environment above (Kernel > Change Kernel).
A check fails though you have mended its task: run the changed cell, and then the check, again.
"""


def requirements() -> list[str]:
    """What a student installs beside dss: its direct dependencies and what opens notebooks, in the
    versions that pyproject.toml pins."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = dict(pin.split("==") for pin in settings["tool"]["uv"]["constraint-dependencies"])
    needed = {re.match(r"[\w.-]+", text)[0] for text in settings["project"]["dependencies"]}
    return [f"{name}=={pins[name]}" for name in sorted({*needed, *NOTEBOOK})]


def wheel() -> tuple[str, bytes]:
    """The package dss as a wheel, its name and content; built from a copy, without network.

    Raises:
        RuntimeError: pip could not build it.
    """
    with tempfile.TemporaryDirectory() as place:
        copy, made = Path(place, "copy"), Path(place, "made")
        shutil.copytree(ROOT / "dss", copy / "dss", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps"]
        command += ["--no-build-isolation", "--wheel-dir", str(made), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not build the wheel of dss:\n{done.stderr[-2000:]}")
        (path,) = made.glob("*.whl")
        return path.name, path.read_bytes()


def pack(release: Path, names: list[str], built: tuple[str, bytes], target: Path) -> None:
    """Write the archive: no solution, no hidden test and no data set is in it.

    Args:
        release: the folder with the released assignments.
        names: of the assignments.
        built: name and content of the wheel.
        target: the archive.
    """
    file, content = built
    text = README.format(
        notebooks=", ".join(f"`{name}.ipynb`" for name in names), wheel=file, folder=FOLDER
    )
    parts: dict[str, bytes] = {
        "README.md": text.encode(),
        "requirements.txt": "\n".join([*requirements(), f"./{file}", ""]).encode(),
        file: content,
    }
    parts |= {f"{name}.ipynb": (release / name / f"{name}.ipynb").read_bytes() for name in names}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(f"{FOLDER}/{name}", part)
    write(target, buffer.getvalue())
