"""Builds the native kernels: one Extension per `.pyx` in src/gputel/_native.

GPUTEL_DEBUG=1 builds them for the tests that look for mistakes, with the address and
undefined-behaviour sanitizers linked in (`make sanitize` runs the tests on that build).
Cython's own bounds checks are on in both builds: the kernels' inner loops go through
pointers, where only the sanitizers see.
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("GPUTEL_DEBUG") == "1"
NATIVE = Path("src/gputel/_native")

OPTIMISED = ["-O3", "-fno-strict-aliasing"]
SANITIZED = [
    "-O1",
    "-g",
    "-fno-strict-aliasing",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
]

extensions = [
    Extension(
        f"gputel._native.{source.stem}",
        [str(source)],
        depends=sorted(map(str, NATIVE.glob("*.h"))),
        include_dirs=[numpy.get_include(), str(NATIVE)],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-std=c11", "-Wall", *(SANITIZED if DEBUG else OPTIMISED)],
        extra_link_args=["-fsanitize=address,undefined"] if DEBUG else [],
    )
    for source in sorted(NATIVE.glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={"language_level": 3, "show_performance_hints": False},
        build_dir="build/cython-debug" if DEBUG else "build/cython",
    ),
)
