"""The ring and the sweeps' turn-taking from many threads, as built, with the thread sanitizer and
with the others; and that the thread sanitizer sees a missing release (`make tsan` runs longer).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src" / "gputel" / "_native"
HAMMER = ROOT / "tests" / "support" / "nvml_hammer.c"
SECONDS = float(os.environ.get("HAMMER_SECONDS", "1.5"))

THREAD = ["-fsanitize=thread"]
BUILDS = {
    "as built": [],
    "thread": THREAD,
    "address, leaks and undefined": [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ],
}
#: What is published without a release, and where the sanitizer sees it.
SEEDS = {"-DSEED_RING": "check_row", "-DSEED_LOCK": "gputel_claim"}


def compiled(flags: list[str], folder: Path) -> Path:
    """The program; skips where the compiler has no such sanitizer."""
    hammer = folder / "hammer"
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-strict-aliasing"]
    command += ["-Wall", "-Wextra", "-Werror", *flags]
    if any(flag.startswith("-fsanitize") for flag in flags):
        empty = folder / "empty.c"
        empty.write_text("int main(void) { return 0; }\n")
        trial = [*command, str(empty), "-o", str(hammer)]
        if subprocess.run(trial, capture_output=True, env=environment(), check=False).returncode:
            pytest.skip(f"the compiler has no {flags}")
    command += [f"-I{NATIVE}", str(HAMMER), "-lm", "-lpthread", "-o", str(hammer)]
    subprocess.run(command, check=True, timeout=100, env=environment())
    return hammer


def environment() -> dict[str, str]:
    """Ours without a preloaded sanitizer, of a run of this test under one: two do not mix."""
    kept = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return kept | {"ASAN_OPTIONS": "detect_leaks=1"}


def hammered(hammer: Path) -> subprocess.CompletedProcess[str]:
    """One run."""
    return subprocess.run(
        [str(hammer), str(SECONDS)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60 + 2 * SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_every_row_is_whole_in_order_and_there(build: str, tmp_path: Path) -> None:
    ran = hammered(compiled(BUILDS[build], tmp_path))
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr[-20_000:]}"
    rows, takeovers, events, wrong = (int(word) for word in ran.stdout.split() if word.isdigit())
    assert wrong == 0
    assert rows > 1_000 * SECONDS
    assert events > 100 * SECONDS
    assert takeovers > 3 * SECONDS, "calls were long, and their threads' turn was taken"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_thread_sanitizer_sees_a_missing_release(seed: str, tmp_path: Path) -> None:
    ran = hammered(compiled([*THREAD, seed], tmp_path))
    assert ran.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in ran.stderr
    assert SEEDS[seed] in ran.stderr
