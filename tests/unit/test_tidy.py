"""The style that a machine can check (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for pattern in ("*.py", "*.pyx", "*.pxd", "*.pyi", "*.h", "*.c")
    for path in (ROOT / "src" / "gputel").rglob(pattern)
    if "_proto" not in path.parts
)
LINES_MAX = 450
FUNCTION_LINES_MAX = 60
# Names that say nothing about what is inside.
VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
# Spelled in parts, so that this file does not find itself.
UNFINISHED = re.compile("|".join(f"\\b{word}\\b" for word in ("TODO", "FIXME", "XXX")))
PRIVATE = re.compile(
    "/" r"work/|/" r"root/|" + r"|".join(("artifactory", "jf" r"rog\.", r"://[^/\s]*nexus"))
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tracked() -> tuple[Path, ...]:
    """The files git knows; skips where there is no git or no repository."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30
        ).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(ROOT / name for name in listed.split("\0") if name)


def tracked_texts() -> list[tuple[Path, str]]:
    if not tracked():
        pytest.skip("no git repository here")
    texts = []
    for path in tracked():
        if not path.is_file() or "vendor" in path.parts or path.name == Path(__file__).name:
            continue
        try:
            texts.append((path, path.read_text("utf-8")))
        except UnicodeDecodeError:
            continue  # a binary fixture
    return texts


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_small_and_has_a_telling_name(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX
    assert not VAGUE & set(re.split(r"[._]", path.name))
    assert not VAGUE & set(path.relative_to(ROOT).parts)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".py"], ids=name_of)
def test_modules_are_described_and_functions_short(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says in one line what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert not found


def test_no_path_or_host_of_one_machine_is_named() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if PRIVATE.search(line)
    ]
    assert not found


def test_only_what_comes_before_the_config_reads_the_environment_beside_it() -> None:
    allowed = {"src/gputel/kernels.py", "src/gputel/broker/sockets.py"}
    readers = {
        name_of(path)
        for path in SOURCES
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text())
    }
    assert readers - allowed <= {name for name in readers if name.startswith("src/gputel/config/")}
