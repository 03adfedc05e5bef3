"""Programs on the simulated NVIDIA driver: where its library is, and how one is started on it.

The library stands in for the driver's own by its name alone: a program that finds it first
(LD_LIBRARY_PATH) reads simulated GPUs, whatever it is written in. GPUTEL_SIM tells the library
what to simulate. Only the library understands that variable; it is asked here, so that a
mistake is told before a program runs into it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import gputel
from gputel.errors import CommandNotExecutable, CommandNotFound, ConfigError, SourceUnavailable

LIBRARY: Final = "libnvidia-ml.so.1"
FOLDER: Final = Path(gputel.__file__).parent / "_native" / "simnvml"
SPECIFICATION: Final = "GPUTEL_SIM"
SEARCH_PATH: Final = "LD_LIBRARY_PATH"
COMPLAINT_BYTES: Final = 4096


def library_folder() -> Path:
    """The folder that holds the simulated `libnvidia-ml.so.1`. SourceUnavailable."""
    if not (FOLDER / LIBRARY).is_file():
        raise SourceUnavailable(
            f"the simulated driver isn't built: there is no {LIBRARY} in {FOLDER}",
            hint="build it with `make build`, or `python setup.py build_ext --inplace`",
        )
    return FOLDER


def specification(inherited: str, settings: Iterable[tuple[str, str]]) -> str:
    """What GPUTEL_SIM must say: what it says already, and over it `settings`, (key, value).

    ConfigError with the library's own words for what it doesn't understand.
    """
    over = [f"{key}={value}" for key, value in settings]
    if over and inherited.startswith("@"):
        raise ConfigError(
            SPECIFICATION, f"flags can't go over {inherited}: write them in that file"
        )
    text = ";".join([inherited, *over] if inherited else over)
    if complaint := _complaint(text):
        raise ConfigError(SPECIFICATION, complaint)
    return text


def _complaint(text: str) -> str:
    """What the library says of a specification; empty when it understands it.

    It writes what is wrong to stderr.
    """
    library = ctypes.CDLL(str(library_folder() / LIBRARY))
    os.putenv(SPECIFICATION, text)
    with os.fdopen(os.memfd_create("complaint"), "rb") as complaint:
        stderr_fd = os.dup(2)
        os.dup2(complaint.fileno(), 2)
        try:
            code = library.gputelSimCheck()
        finally:
            os.dup2(stderr_fd, 2)
            os.close(stderr_fd)
        said = os.pread(complaint.fileno(), COMPLAINT_BYTES, 0).decode(errors="replace")
    if code:
        why = said.strip().removeprefix(f"{SPECIFICATION}: ")
        return why or f"the simulated driver can't start (NVML return {code})"
    return ""


def environment(
    inherited: Mapping[str, str], settings: Iterable[tuple[str, str]]
) -> dict[str, str]:
    """`inherited` with what makes a program see the simulated driver."""
    folder, search = str(library_folder()), inherited.get(SEARCH_PATH, "")
    return {
        **inherited,
        # An empty entry would mean the current directory.
        SEARCH_PATH: f"{folder}{os.pathsep}{search}" if search else folder,
        SPECIFICATION: specification(inherited.get(SPECIFICATION, ""), settings),
    }


def executable(name: str, search_path: str | None) -> str:
    """The file that the command `name` is. CommandNotFound, CommandNotExecutable.

    search_path    the variable PATH, or None for the system's default
    """
    found = shutil.which(name, path=search_path)
    if found is not None:
        return found
    places = (
        [Path(name).parent] if os.sep in name else (search_path or os.defpath).split(os.pathsep)
    )
    if any((Path(place) / Path(name).name).exists() for place in places):
        raise CommandNotExecutable(f"{name}: this file can't be executed")
    where = "" if os.sep in name else " in PATH"
    raise CommandNotFound(f"{name}: there is no such command{where}")


def is_simulated() -> bool:
    """Is the NVML that a program finds here the simulated one?"""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return hasattr(library, "gputelSimTime")
