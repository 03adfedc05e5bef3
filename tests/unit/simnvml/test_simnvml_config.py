"""GPUTEL_SIM: what is understood, and what is said about the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from support.simulation import environment, simulated

PROGRAM = """
import pynvml
try:
    pynvml.nvmlInit()
except pynvml.NVMLError as error:
    raise SystemExit(int(error.value))
print(pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
"""


def started(config: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(config),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("config", "output"),
    [
        ("", "8 NVIDIA H100 80GB HBM3"),
        ("gpus=2;model=A100", "2 NVIDIA A100-SXM4-80GB"),
        (" gpus=2,\n# a comment, with = and ;\nmodel=consumer ", "2 NVIDIA GeForce RTX 4090"),
        ("model=blackwell,gpus=64,", "64 NVIDIA B200"),
        ("fault=xid=31@5:gpu=3,gpus=4", "4 NVIDIA H100 80GB HBM3"),
    ],
)
def test_understood(config: str, output: str) -> None:
    ran = started(config)
    assert ran.stdout.strip() == output
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("mig=0:9g.1gb", "mig=0:9g.1gb: 9g.1gb is no MIG profile of a h100"),
        ("gpus=2,mig=2:1g.10gb", "mig=2:1g.10gb: there are gpus=2, the first is 0"),
        ("mig=0:4g.40gb+4g.40gb", "7 compute and 8 memory slices can be divided"),
        ("mig=0", "mig=0: GPU:PROFILE+PROFILE is allowed, such as 0:3g.40gb+3g.40gb"),
        ("mig=x:1g.10gb", "mig=x:1g.10gb: GPU:PROFILE+PROFILE is allowed"),
        ("mig=0:", "mig=0:: GPU:PROFILE+PROFILE is allowed"),
        ("mig=100:1g.10gb", "mig=100:1g.10gb: GPU:PROFILE+PROFILE is allowed"),
        ("model=rtx4090,mig=0:1g.10gb", "mig=0:1g.10gb: a rtx4090 has no MIG"),
        ("mig=0:1g.10gb,model=b200", "1g.10gb is no MIG profile of a b200"),
        ("gpus=0", "gpus=0: a number from 1 to 64 is allowed"),
        ("gpus=65", "gpus=65: a number from 1 to 64 is allowed"),
        ("gpus=+3", "gpus=+3: a number from 1 to 64 is allowed"),
        ("gpus", "gpus=: a key needs a value"),
        ("model=v100", "model=v100: one of a100, h100, b200, rtx4090 is allowed"),
        ("model=", "model=: one of a100, h100, b200, rtx4090 is allowed"),
        ("seed=-1", "seed=-1: a number from 0 to 18446744073709551615 is allowed"),
        ("seed=99999999999999999999", "18446744073709551615 is allowed"),
        ("profile=busy", "profile=busy: idle, training, inference or mixed is allowed"),
        ("refresh_ms=0", "refresh_ms=0: a number from 1 to 10000 is allowed"),
        ("latency.nvmlNo=5", "latency.nvmlNo=5: this is no NVML function"),
        ("clock=fast", "clock=fast: real or manual is allowed"),
        ("wait=busy", "wait=busy: spin or sleep is allowed"),
        ("driver=abc", "driver=abc: a driver's version such as 570.172.08 is allowed"),
        ("anchor=1000000", "anchor: a time within the last 24 hours is allowed"),
        ("pids=1+x", "pids=1+x: up to 16 process ids joined by + are allowed"),
        ("speed=5", "speed=5: the keys are gpus, model, seed"),
        ("fault=melt", "'melt' is none of lost, reset_required"),
        ("fault=lost=5", "lost takes no value"),
        ("fault=xid", "xid needs a whole number"),
        ("fault=xid=5@1+2", "xid happens at an instant"),
        ("fault=lost@soon", "'@soon' is not a time in seconds"),
        ("fault=lost@1+nan", "'+nan' is not a duration in seconds"),
        ("fault=lost:gpu", "':gpu' has no value"),
        ("fault=lost:gpu=8", "gpu=8: there are gpus=8, the first is 0"),
        ("fault=lost:when=5", "':when' is none of gpu, function, and lookup"),
        ("fault=lost:lookup=maybe", "ok, lost or not_found is allowed"),
        ("fault=hang:function=nvmlNo", "'nvmlNo' is no NVML function"),
        ("fault=remove:function=nvmlDeviceGetName", "remove can't be narrowed"),
        ("fault=no_function", "no_function needs the name of a function"),
        ("fault=no_function=nvmlShutdown", "nvmlShutdown can't be given a fault"),
        ("fault=lost:function=nvmlInit", "lost is not for nvmlInit, which asks no GPU"),
        ("fault=hang:gpu=1:function=nvmlInit", "'gpu=1': nvmlInit belongs to no GPU"),
        ("fault=" + "x" * 300, "longer than 255 characters"),
        ("fault=" + "x" * 600, "an item of more than 511 characters"),
        (",".join(["fault=xid=1:gpu=0"] * 129), "128 faults are allowed"),
        (",".join(["fault=xid=1:gpu=0"] * 33), "a GPU can have 32"),
        ("@/no/such/file", "@/no/such/file: No such file or directory"),
    ],
)
def test_refused_with_a_reason(config: str, message: str) -> None:
    ran = started(config)
    assert ran.returncode == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert ran.stderr.startswith("GPUTEL_SIM: ")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "node.sim"
    path.write_text("# eight are too many\ngpus=2\nmodel=a100\nfault=lost@5:gpu=1\n")
    assert started(f"@{path}").stdout.strip() == "2 NVIDIA A100-SXM4-80GB"
    path.write_text("gpus=2\n" + "#" * 70_000)
    assert "a text of at most 65536 bytes is needed" in started(f"@{path}").stderr


@simulated("gpus=2", start=False)
def test_another_text_makes_another_driver():
    import os

    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 2
    os.environ["GPUTEL_SIM"] = "gpus=5,model=b200"
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 2  # in use
    pynvml.nvmlShutdown()
    pynvml.nvmlShutdown()
    os.environ["GPUTEL_SIM"] = "gpus=none"
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlInit()
    os.environ["GPUTEL_SIM"] = "gpus=5,model=b200"
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 5


@pytest.mark.parametrize(
    ("driver", "nvml", "cuda"),
    [("550.54.15", "12.550.54.15", 12040), ("570.172.08", "12.570.172.08", 12080),
     ("580.95.05", "13.580.95.05", 13000)],
)  # fmt: skip
@simulated("driver={driver}")
def test_driver_versions(driver: str, nvml: str, cuda: int):
    assert pynvml.nvmlSystemGetDriverVersion() == driver
    assert pynvml.nvmlSystemGetNVMLVersion() == nvml
    assert pynvml.nvmlSystemGetCudaDriverVersion() == cuda
