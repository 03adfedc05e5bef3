"""Builds the native kernels: one Extension per `.pyx` in src/gputel/_native.

GPUTEL_DEBUG=1 builds them for the tests that look for mistakes: bounds checks and
overflow checks on, and the address and undefined-behaviour sanitizers linked in
(`make sanitize` runs the tests on that build).
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("GPUTEL_DEBUG") == "1"
NATIVE = Path("src/gputel/_native")

OPTIMISED = ["-O3", "-fno-strict-aliasing"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]

extensions = [
    Extension(
        f"gputel._native.{source.stem}",
        [str(source)],
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
        compiler_directives={
            "language_level": 3,
            # The files that earn it turn these off at their head; the debug build says no.
            **({"boundscheck": True, "wraparound": True, "overflowcheck": True} if DEBUG else {}),
        },
        build_dir="build/cython-debug" if DEBUG else "build/cython",
    ),
)
