"""A browser, the built site and a page that minds its manners: fixtures for tests of the site."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Error, sync_playwright
from scratch import made_once

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = (
    "NO BROWSER, SO THE SITE WAS NOT TESTED IN ONE. Install Chromium (`apt-get install chromium`) "
    "or set DSS_BROWSER to the path of a Chromium or Chrome. "
)


@functools.cache
def executable() -> tuple[str | None, str]:
    """Path of a Chromium, installed on the way where that is possible, or None and why."""
    if chosen := os.environ.get("DSS_BROWSER"):
        return shutil.which(chosen), f"DSS_BROWSER is {chosen!r}, which is no program."
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found, ""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None, "Tests install it by themselves only as root with apt-get."
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        try:
            subprocess.run(
                ["apt-get", *arguments],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                timeout=300,
                check=True,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            return None, f"`apt-get {' '.join(arguments)}` failed: {''.join(map(str, last))}"
    return shutil.which("chromium"), "apt-get installed no `chromium`."


# One a module, not one a session: while Playwright runs, so does an event loop in this thread, and
# what other modules test must not find one.
@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; its tests are skipped, loudly, where there is none."""
    path, why = executable()
    if path is None:
        pytest.skip(NO_BROWSER + why)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(NO_BROWSER + f"{path} does not start: {error.message.splitlines()[0]}")
        yield started
        started.close()


def hear(context) -> list[str]:
    """A list that grows with every complaint of the pages of a context.

    Complaints are errors, warnings, what is not loaded, and requests to another host, which go
    nowhere.
    """
    complaints = []

    def let_through(route):
        url = urlsplit(route.request.url)
        if url.scheme in ("file", "data", "blob") or url.hostname == "127.0.0.1":
            return route.continue_()
        complaints.append(f"asked another host: {route.request.url}")
        return route.abort()

    def read(message):
        if message.type in ("error", "warning"):
            complaints.append(f"console {message.type}: {message.text}")

    def lose(request):
        if "ERR_ABORTED" not in request.failure:  # the test went on to another page
            complaints.append(f"not loaded: {request.url} ({request.failure})")

    context.route("**/*", let_through)
    context.on("console", read)
    context.on("weberror", lambda event: complaints.append(f"error: {event.error}"))
    context.on("requestfailed", lose)
    context.on("response", lambda r: r.status >= 400 and complaints.append(f"{r.status}: {r.url}"))
    return complaints


@pytest.fixture
def page(browser):
    """A blank page; the test fails when what it shows complains or asks another host."""
    context = browser.new_context()
    complaints = hear(context)
    yield context.new_page()
    context.close()
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """Folder of the site."""
    return made_once(tmp_path_factory, worker_id, "site", build) / "html"


def build(folder):
    """Make the site in a folder, from the committed notebooks, where no kernel would start."""
    no_kernel, out = folder / "no_kernel", folder / "html"
    no_kernel.mkdir()
    (no_kernel / "ipykernel_launcher.py").write_text("raise SystemExit('a notebook is run')")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "notebooks", str(out)]
    path = os.pathsep.join(filter(None, [str(no_kernel), str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
