"""Text is read and written as UTF-8, whatever the locale says."""

import ast

import pytest

from dss import provenance

MODULES = provenance.module_files()


BINARY = ("Image", "tarfile")  # their open() reads bytes


def without_encoding(source):
    """Lines of calls that open text and name no encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
            is_binary = getattr(getattr(node.func, "value", None), "id", "") in BINARY
            is_binary |= any(isinstance(m, str) and "b" in m for m in modes if name == "open")
            if name in ("read_text", "write_text", "open") and not is_binary:
                if "encoding" not in {k.arg for k in node.keywords}:
                    yield node.lineno


@pytest.mark.parametrize("module", sorted(MODULES))
def test_text_has_an_encoding(module):
    assert list(without_encoding(MODULES[module].read_text(encoding="utf-8"))) == []


def test_a_line_without_one_is_seen():
    lines = "p.read_text()", "p.write_text('a')", "open('f')", "open('f', 'w')"
    assert [list(without_encoding(line)) for line in lines] == [[1]] * 4
    assert list(without_encoding("open(f, 'xb'); p.read_text(encoding='utf-8')")) == []
