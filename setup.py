"""Builds the native kernels: one Extension per `.pyx` in src/gputel/_native. And the simulated
driver, `libnvidia-ml.so.1`, of the C files in src/gputel/_native/simnvml.

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
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

DEBUG = os.environ.get("GPUTEL_DEBUG") == "1"
NATIVE = Path("src/gputel/_native")
SIMNVML = NATIVE / "simnvml"
SIMNVML_LIBRARY = "libnvidia-ml.so.1"

# Python's own flags ask for debugging symbols, which take the compiler a quarter of its time.
OPTIMISED = ["-O3", "-g0", "-fno-strict-aliasing"]
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


class BuildNative(build_ext):
    """The extensions, then the simulated driver beside them."""

    def run(self) -> None:
        super().run()
        built = Path(self.build_lib, SIMNVML.relative_to("src"), SIMNVML_LIBRARY)
        self.build_simnvml(built)
        if self.inplace or self.editable_mode:
            # A new file: a process that runs on the old one keeps it.
            (SIMNVML / SIMNVML_LIBRARY).unlink(missing_ok=True)
            self.copy_file(str(built), str(SIMNVML / SIMNVML_LIBRARY))

    def build_simnvml(self, library: Path) -> None:
        """A plain shared library: it is found by the name that NVML's clients load."""
        sources = sorted(map(str, SIMNVML.glob("*.c")))
        headers = sorted(map(str, [*SIMNVML.glob("*.h"), *NATIVE.glob("nvml_*.h")]))
        if not (self.force or newer_group([*sources, *headers], str(library))):
            return
        self.mkpath(str(library.parent))
        self.compiler.link_shared_object(
            self.compiler.compile(
                sources,
                output_dir=self.build_temp,
                macros=[("_GNU_SOURCE", None)],
                extra_postargs=["-std=c11", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden"]
                + (SANITIZED if DEBUG else OPTIMISED),
            ),
            str(library),
            libraries=["m", "pthread"],
            extra_postargs=[f"-Wl,-soname,{SIMNVML_LIBRARY}"]
            + (["-fsanitize=address,undefined"] if DEBUG else []),
        )


setup(
    cmdclass={"build_ext": BuildNative},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(
        extensions,
        compiler_directives={"language_level": 3, "show_performance_hints": False},
        build_dir="build/cython-debug" if DEBUG else "build/cython",
    ),
)
