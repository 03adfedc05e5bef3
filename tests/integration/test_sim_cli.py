"""`gputel sim`: the program that is run can't tell that gputel started it, but for the GPUs."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.collecting import on_path

pytestmark = pytest.mark.integration
ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"
COUNT = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
NAME = "import nvitop; print(nvitop.Device(0).name())"


def sim(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["gputel", "sim", *arguments],
        env={**on_path(), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def python(script: str) -> tuple[str, ...]:
    """A command that runs `script`."""
    return ("--", sys.executable, "-c", script)


def variables_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why nothing was run."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gputel: error: ")
    return line


def folder() -> str:
    return sim("path").stdout.removesuffix("\n")


def test_path_is_one_line_and_holds_the_library() -> None:
    done = sim("path")
    assert done.returncode == 0
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert done.stdout == f"{line}\n"
    assert (Path(line) / "libnvidia-ml.so.1").is_file()
    direct = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={**on_path(), "LD_LIBRARY_PATH": line, "GPUTEL_SIM": "gpus=5"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert direct.stdout == "5\n"


def test_flags_reach_the_driver() -> None:
    assert sim("run", "--gpus", "3", *python(COUNT)).stdout == "3\n"
    assert "A100" in sim("run", "--model=a100", *python(NAME)).stdout
    flags = ["--gpus", "2", "--model", "b200", "--seed", "7", "--profile", "idle"]
    flags += ["--refresh-ms", "20", "--latency-us", "5"]
    flags += ["--fault", "lost@5:gpu=1", "--fault", "xid=79@6:gpu=0"]
    said = variables_of(sim("run", *flags, *python(ENVIRONMENT)))["GPUTEL_SIM"].split(";")
    assert sorted(said) == sorted(
        [
            *("gpus=2", "model=b200", "seed=7", "profile=idle", "refresh_ms=20", "latency_us=5"),
            *("fault=lost@5:gpu=1", "fault=xid=79@6:gpu=0"),
        ]
    )


def test_flags_go_over_the_variable() -> None:
    assert sim("run", *python(COUNT), GPUTEL_SIM="gpus=4").stdout == "4\n"
    assert sim("run", "--gpus", "6", *python(COUNT), GPUTEL_SIM="gpus=4").stdout == "6\n"
    said = variables_of(sim("run", "--gpus", "6", *python(ENVIRONMENT), GPUTEL_SIM="seed=9"))
    assert said["GPUTEL_SIM"] == "seed=9;gpus=6"


def test_a_file_says_what_to_simulate_but_takes_no_flags(tmp_path: Path) -> None:
    file = tmp_path / "node.sim"
    file.write_text("# a small node\ngpus=2\n")
    assert sim("run", *python(COUNT), GPUTEL_SIM=f"@{file}").stdout == "2\n"
    done = sim("run", "--gpus", "3", *python(COUNT), GPUTEL_SIM=f"@{file}")
    assert done.returncode == 3
    assert "node.sim" in refusal(done)


def test_the_search_path_is_kept_behind_ours() -> None:
    said = variables_of(sim("run", *python(ENVIRONMENT), LD_LIBRARY_PATH="/some/where:/else"))
    assert said["LD_LIBRARY_PATH"] == f"{folder()}:/some/where:/else"
    said = variables_of(sim("run", *python(ENVIRONMENT), LD_LIBRARY_PATH=""))
    assert said["LD_LIBRARY_PATH"] == folder()
    assert said["GPUTEL_SIM"] == ""


def test_arguments_of_the_command_are_its_own() -> None:
    script = "import sys; print(sys.argv[1:])"
    for given in (["--gpus", "3"], ["--", "x"], ["--help"], ["--version"], [""]):
        assert sim("run", *python(script), *given).stdout == f"{given}\n"
        without = sim("run", sys.executable, "-c", script, *given)
        assert without.stdout == f"{given}\n"


def test_exit_code_and_input_pass_through() -> None:
    assert sim("run", "--", "sh", "-c", "exit 42").returncode == 42
    done = subprocess.run(
        ["gputel", "sim", "run", "--", "cat"],
        env=on_path(),
        input=b"\x00bytes\xff",
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"\x00bytes\xff"


def test_signals_pass_through() -> None:
    script = "grep -E '^(SigIgn|SigBlk)' /proc/self/status"
    plain = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert sim("run", "--", "sh", "-c", script).stdout == plain.stdout
    with subprocess.Popen(
        ["gputel", "sim", "run", "--", "sh", "-c", "echo $$; exec sleep 60"],
        env=on_path(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid, "it takes the place of gputel"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_no_command() -> None:
    done = sim("run", "--gpus", "2")
    assert done.returncode == 2
    assert "gputel sim run -- " in done.stderr
    assert sim("run", "--").returncode == 2
    assert sim().returncode == 2


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    done = sim("run", "--", "no-such-command", "--flag")
    assert done.returncode == 127
    assert "no-such-command" in refusal(done)
    assert sim("run", "--", str(tmp_path / "none")).returncode == 127


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("no program\n")
    assert sim("run", "--", str(file)).returncode == 126
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    done = sim("run", "--", str(file))
    assert done.returncode == 126
    assert str(file) in refusal(done)
    assert sim("run", "--", str(tmp_path)).returncode == 126
    path = f"{tmp_path}{os.pathsep}{on_path()['PATH']}"
    assert sim("run", "--", "text", PATH=path).returncode == 126


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gpus", "65"), ("gpus", "65", "from 1 to 64")),
        (("--gpus", "many"), ("gpus", "many")),
        (("--model", "h1000"), ("model", "h1000", "h100", "a100", "b200", "rtx4090")),
        (("--profile", "lazy"), ("profile", "idle", "training", "inference", "mixed")),
        (("--refresh-ms", "0"), ("refresh_ms",)),
        (("--latency-us", "-1"), ("latency_us",)),
        (("--seed", "x"), ("seed",)),
        (("--fault", "explode@3"), ("fault", "explode", "lost", "hang", "xid")),
        (("--fault", "lost@soon:gpu=0"), ("fault", "soon")),
        (("--gpus", "2", "--fault", "lost@1:gpu=2"), ("fault", "gpu=2", "gpus=2")),
    ],
)
def test_a_specification_that_makes_no_sense(flags: tuple[str, ...], words: list[str]) -> None:
    done = sim("run", *flags, *python("print('it ran')"))
    assert done.returncode == 3
    line = refusal(done)
    assert line.startswith(f"gputel: error: GPUTEL_SIM: {words[0]}")
    assert all(word in line for word in words), line


def test_a_bad_variable_is_told_before_the_program_runs() -> None:
    done = sim("run", *python("print('it ran')"), GPUTEL_SIM="speed=9")
    assert done.returncode == 3
    assert "speed" in refusal(done)


def test_doctor_says_that_the_driver_is_simulated(tmp_path: Path) -> None:
    done = sim("run", "--", "gputel", "doctor", "--json", "--data-dir", str(tmp_path))
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["driver"]["well"]
    assert "simulated" in checks["driver"]["finding"]
