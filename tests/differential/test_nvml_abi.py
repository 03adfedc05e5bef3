"""Our headers of NVML's binary interface say the same as NVIDIA's."""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
from pathlib import Path

import pytest

from support.simulation import LIBRARY

NATIVE = Path(__file__).parents[2] / "src" / "gputel" / "_native"
ABI = NATIVE / "nvml_abi.h"
#: The header and what it includes; the sampler's own files are named nvml_*.h too.
HEADERS = [ABI, *(NATIVE / name for name in re.findall(r'#include "(\w+\.h)"', ABI.read_text()))]
TEXT = re.sub(r"/\*.*?\*/", "", "".join(h.read_text("utf-8") for h in HEADERS), flags=re.S)

TYPE = re.compile(
    r"typedef (?P<kind>struct|union|enum)\s*\w*\s*\{(?P<body>(?:[^{}]|\{[^{}]*\})*)\}\s*"
    r"(?P<name>\w+)"
)
PROGRAM = """
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include HEADER
#include <stddef.h>
#include <stdio.h>
int main(void)
{{
{lines}
    return 0;
}}
"""


def constants() -> list[str]:
    members = [
        name
        for found in TYPE.finditer(TEXT)
        if found["kind"] == "enum"
        for name in re.findall(r"^\s*(\w+)", found["body"], flags=re.M)
    ]
    defined = re.findall(r"^#define ((?:NVML_|nvml)\w+) \S", TEXT, flags=re.M)
    ours = {"NVML_FUNCTIONS_ONLY"}  # the switch of our own header
    return sorted(set(members + defined) - ours)


def structs() -> dict[str, list[str]]:
    """Struct or union to its members; one of a struct inside, with a dot."""
    found = {}
    for match in TYPE.finditer(TEXT):
        if match["kind"] == "enum":
            continue
        inner = re.search(r"struct \{([^{}]*)\} (\w+);", match["body"])
        body = match["body"].replace(inner[0], f"int {inner[2]};") if inner else match["body"]
        members = re.findall(r"(\w+)(?:\[\w+\])?;", body)
        if inner:
            members += [f"{inner[2]}.{name}" for name in re.findall(r"(\w+);", inner[1])]
        found[match["name"]] = members
    return found


def lines() -> list[str]:
    said = [f'    printf("{name} %lld\\n", (long long){name});' for name in constants()]
    for struct, members in structs().items():
        said.append(f'    printf("sizeof {struct} %zu\\n", sizeof({struct}));')
        said += [
            f'    printf("{struct}.{member} %zu %zu\\n", offsetof({struct}, {member}), '
            f"sizeof((({struct} *)0)->{member}));"
            for member in members
        ]
        if versioned := re.fullmatch(r"nvml(\w+)_v(\d+)_t", struct):
            data, version = versioned.groups()
            if members[0] == "version":
                said.append(
                    f'    printf("version of {struct} %u\\n", '
                    f"NVML_STRUCT_VERSION({data}, {version}));"
                )
    return said


def vendor() -> Path:
    """NVIDIA's nvml.h, from the package nvidia-nvml-dev-cu12."""
    package = importlib.import_module("nvidia.nvml_dev")
    return Path(next(iter(package.__path__))) / "include" / "nvml.h"


def said_by(header: Path, program: Path) -> list[str]:
    binary = program.with_suffix("")
    subprocess.run(
        ["cc", "-std=c11", f'-DHEADER="{header}"', str(program), "-o", str(binary)],
        check=True,
        timeout=60,
    )
    ran = subprocess.run([str(binary)], check=True, capture_output=True, text=True, timeout=10)
    return ran.stdout.splitlines()


def test_values_and_layouts(tmp_path: Path) -> None:
    program = tmp_path / "abi.c"
    program.write_text(PROGRAM.format(lines="\n".join(lines())))
    ours, theirs = said_by(NATIVE / "nvml_abi.h", program), said_by(vendor(), program)
    assert ours == theirs
    # What the expressions above find can't have become nothing.
    assert len(constants()) > 400
    assert len(structs()) > 45
    assert sum(line.startswith("version of") for line in ours) > 15
    assert any(line.startswith("nvmlGpmMetric_t.metricInfo.unit ") for line in ours)


def test_signatures(tmp_path: Path) -> None:
    """Declared again on top of NVIDIA's header: the compiler refuses another signature."""
    source = tmp_path / "signatures.c"
    source.write_text(
        "#define NVML_NO_UNVERSIONED_FUNC_DEFS\n"
        f'#include "{vendor()}"\n'
        "#define NVML_FUNCTIONS_ONLY\n"
        f'#include "{NATIVE / "nvml_functions.h"}"\n'
        "NVML_FUNCTIONS(NVML_PROTOTYPE)\n"
        "NVML_FUNCTIONS(NVML_POINTER_TYPE)\n"
        "#define SAME(name, arguments) name##_fn pointer_to_##name = name;\n"
        "NVML_FUNCTIONS(SAME)\n"
    )
    command = ["cc", "-std=c11", "-Wall", "-Werror", "-c", str(source), "-o", str(tmp_path / "s.o")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr


def functions() -> list[str]:
    return re.findall(r"\bF\((\w+),", (NATIVE / "nvml_functions.h").read_text("utf-8"))


def test_a_wrong_signature_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text(f'#include "{vendor()}"\nnvmlReturn_t nvmlShutdown(int wrong);\n')
    command = ["cc", "-std=c11", "-c", str(source), "-o", str(tmp_path / "w.o")]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0


def test_the_library_exports_the_list_and_its_control() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(LIBRARY)],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    exported = {line.split()[2] for line in listed.stdout.splitlines() if " T " in line}
    control = {name for name in exported if name.startswith("gputelSim")}
    assert exported - control == {*functions(), "nvmlErrorString"}
    documented = (NATIVE / "simnvml" / "simnvml.h").read_text("utf-8")
    assert control == set(re.findall(r"(gputelSim\w+)\(", documented))


@pytest.mark.parametrize("name", ["nvmlMemory_v2_t", "nvmlFieldValue_t", "nvmlEventData_t"])
def test_pynvml_has_the_layout(name: str, tmp_path: Path) -> None:
    import pynvml

    python_name = {"nvmlMemory_v2_t": "c_nvmlMemory_v2_t"}.get(name, f"c_{name}")
    program = tmp_path / "size.c"
    line = f'    printf("%zu\\n", sizeof({name}));'
    program.write_text(PROGRAM.format(lines=line))
    size = int(said_by(NATIVE / "nvml_abi.h", program)[0])
    assert ctypes.sizeof(getattr(pynvml, python_name)) == size
