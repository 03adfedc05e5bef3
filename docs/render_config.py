"""Write configs/config.yaml and docs/reference/config.md from the settings themselves.

    python docs/render_config.py

The comment above a setting (`#:`) is its documentation. A test runs `render` and compares.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gputel.config.settings import SECTIONS, SUBSECTIONS, Config
from gputel.config.values import KEYS, allowed_text
from gputel.store.settings import DatabaseSettings

ROOT = Path(__file__).resolve().parent.parent

YAML_HEAD = """\
# The configuration of gputel. Every key is here with its default; leave out what you do not
# change. `GPUTEL_SECTION__KEY` variables go over this file, command line flags over both:
#   GPUTEL_COLLECTOR__FAST_HZ=20 gputel up --gpus 4
# `gputel config check FILE` prints what is in effect, or what is wrong.
"""

MARKDOWN_HEAD = """\
# Configuration

One YAML file, given with `--config FILE`. Precedence, weakest first: defaults, file,
environment, command line flags. A key's variable is `GPUTEL_SECTION__KEY`; lists are separated
by commas there, `null` is nothing. Reserved, and no settings: `GPUTEL_KERNELS`,
`GPUTEL_NATIVE_DIR`, `GPUTEL_DEBUG`, `GPUTEL_SIM`. Some of dcgm-exporter's variables are taken as
well ([exporter](exporter.md)). `GRPC_EXPERIMENTS`, gRPC's own, has another default where gputel
speaks to its broker ([broker](broker.md)).

An unknown key or variable, a key that stands twice, an alias, or a value out of its range is an
error that names where it stands and what is allowed. Listeners stay on this machine unless
`insecure: true` (or `--insecure`) is said.

A file of the first generation (`configs/first-generation.yaml`) loads unchanged.

This page is written by `python docs/render_config.py`.
"""


def comments(struct: type[msgspec.Struct]) -> dict[str, list[str]]:
    """Field name to the lines of its `#:` comment; it holds for following bare fields too."""
    found: dict[str, list[str]] = {}
    pending: list[str] = []
    for raw in inspect.getsource(struct).splitlines():
        line = raw.strip()
        if line.startswith("#:"):
            pending.append(line[2:].strip())
            continue
        name = line.partition(":")[0]
        if name in struct.__struct_fields__:
            found[name] = pending
        if line:
            pending = []
    return found


def scalar(value: Any) -> str:
    """A value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def defaults(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Field name to default."""
    plain = struct()
    return {name: getattr(plain, name) for name in struct.__struct_fields__}


def first_line(struct: type[msgspec.Struct]) -> str:
    """What a section is for."""
    return inspect.getdoc(struct).splitlines()[0]  # type: ignore[union-attr]


def render_yaml() -> str:
    """configs/config.yaml."""
    lines = [YAML_HEAD]
    for name, value in defaults(Config).items():
        if name not in SECTIONS:
            lines += [f"# {comment}" for comment in comments(Config)[name]]
            lines += [f"{name}: {scalar(value)}", ""]
    for section, struct in SECTIONS.items():
        off = "# " if struct is DatabaseSettings else ""
        lines.append(f"# {first_line(struct)}")
        lines.append("database: null" if off else f"{section}:")
        if off:
            lines.append(f"{off}{section}:")
        notes = comments(struct)
        for name, value in defaults(struct).items():
            inner = SUBSECTIONS.get((section, name))
            if inner is not None:
                lines += _subsection(name, inner)
                continue
            lines += [f"{off}  # {comment}" for comment in notes.get(name, [])]
            lines.append(f"{off}  {name}: {scalar(value)}")
        lines.append("")
    return "\n".join(lines)


def _subsection(section: str, struct: type[msgspec.Struct]) -> list[str]:
    lines = [f"  # {first_line(struct)}", f"  {section}:"]
    notes = comments(struct)
    for name, value in defaults(struct).items():
        lines += [f"    # {comment}" for comment in notes.get(name, [])]
        lines.append(f"    {name}: {scalar(value)}")
    return lines


def render_markdown() -> str:
    """docs/reference/config.md."""
    lines = [MARKDOWN_HEAD, "## Top level", "", *_table((), Config, skip=set(SECTIONS))]
    for section, struct in SECTIONS.items():
        lines += ["", f"## `{section}`", "", inspect.getdoc(struct) or "", ""]
        inner = {path: of for path, of in SUBSECTIONS.items() if path[0] == section}
        lines += _table((section,), struct, skip={path[1] for path in inner})
        for path, of in inner.items():
            lines += ["", f"## `{'.'.join(path)}`", "", inspect.getdoc(of) or "", ""]
            lines += _table(path, of, skip=set())
    return "\n".join(lines) + "\n"


def _table(prefix: tuple[str, ...], struct: type[msgspec.Struct], skip: set[str]) -> list[str]:
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    notes = comments(struct)
    for name, value in defaults(struct).items():
        if name in skip:
            continue
        path = (*prefix, name)
        assert path in KEYS
        meaning = " ".join(notes.get(name, []))
        cells = (f"`{name}`", f"`{scalar(value)}`", allowed_text(path), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def render() -> dict[Path, str]:
    """File to its content."""
    return {
        ROOT / "configs/config.yaml": render_yaml(),
        ROOT / "docs/reference/config.md": render_markdown(),
    }


if __name__ == "__main__":
    for path, content in render().items():
        path.write_text(content)
