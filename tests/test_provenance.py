"""What manifests say of commit and changes, and what they leave open."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dss import provenance


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A clone with one commit, taken for the project of dss; and git in its folder."""
    folder = tmp_path / "project"
    (folder / "dss").mkdir(parents=True)
    (folder / "dss" / "__init__.py").write_text("# nothing\n", encoding="utf-8")
    monkeypatch.setattr(provenance, "PROJECT", folder)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]

    def git(*arguments):
        subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    return folder


def test_a_commit_and_whether_it_was_changed(project, recwarn):
    commit, dirty = provenance._commit()
    assert len(commit) == 40 and dirty is False
    (project / "dss" / "more.py").write_text("", encoding="utf-8")
    assert provenance._commit() == (commit, True)
    assert not recwarn.list


def no_git(project, monkeypatch):
    monkeypatch.setenv("PATH", str(project))


def another_owner(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")


def no_clone(project, monkeypatch):
    shutil.rmtree(project / ".git")


def installed_into_another_clone(project, monkeypatch):
    folder = project / "site-packages"
    shutil.copytree(project / "dss", folder / "dss")
    monkeypatch.setattr(provenance, "PROJECT", folder)


def a_slow_git(project, monkeypatch):
    def run(command, **how):
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    "situation, reason",
    [
        (no_git, "No such file or directory: 'git'"),
        (another_owner, "dubious ownership"),
        (no_clone, "not a git repository"),
        (installed_into_another_clone, "did not match any file"),
        (a_slow_git, "timed out"),
    ],
)
def test_where_git_cannot_answer_nothing_is_said(project, monkeypatch, situation, reason):
    situation(project, monkeypatch)
    with pytest.warns(UserWarning, match=f"(?s)does not say which commit.*{reason}"):
        found = provenance.environment()
    assert found["git_commit"] is None and found["git_dirty"] is None


def test_no_file_changes_when_it_is_checked_out():
    """Digests are of bytes, which git's conversion of line endings would change."""
    root = Path(__file__).parents[1]
    listed = subprocess.run(["git", "-C", root, "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    command = ["git", "-C", root, "check-attr", "text", "--stdin"]
    said = subprocess.run(command, input=listed.stdout, capture_output=True, text=True).stdout
    assert said and [line for line in said.splitlines() if not line.endswith("text: unset")] == []
