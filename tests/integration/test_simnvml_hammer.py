"""The simulated driver under eight threads, as built and with the sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.simulation import LIBRARY

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src" / "gputel" / "_native"
HAMMER = ROOT / "tests" / "support" / "simnvml_hammer.c"
SECONDS = 2

BUILDS = {
    "as built": [],
    "thread": ["-fsanitize=thread"],
    "address and undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_all_functions_from_many_threads(build: str, tmp_path: Path) -> None:
    sources = [str(source) for source in sorted((NATIVE / "simnvml").glob("*.c"))]
    libraries = sources if BUILDS[build] else [str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}"]
    hammer = tmp_path / "hammer"
    # A preloaded sanitizer, of a run of this test under one, does not mix with another.
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Werror", *BUILDS[build]]
    command += [f"-I{NATIVE}", str(HAMMER), *libraries, "-lm", "-lpthread", "-o", str(hammer)]
    subprocess.run(command, check=True, timeout=100, env=environment)
    ran = subprocess.run(
        [str(hammer), str(SECONDS)],
        env=environment | {"GPUTEL_SIM": "gpus=6,refresh_ms=1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr[-20_000:]}"
    calls, wrong = (int(word) for word in ran.stdout.split() if word.isdigit())
    assert wrong == 0
    assert calls > 50_000
