"""The one thing that pyproject.toml cannot say: flags for the compiler of the optional C kernel.

``optional``: without a compiler the installation goes on, and minilora computes with tensors. The
"extension" is a plain shared library that minilora/nf4/kernel.py opens with ctypes.
"""

import os

from setuptools import Extension, setup

FLAGS = [] if os.name == "nt" else ["-O3", "-ffp-contract=off"]  # MSVC's own are right
setup(
    ext_modules=[
        Extension(
            "minilora.nf4._kernel",
            ["minilora/nf4/kernel.c"],
            depends=["minilora/nf4/kernel_x86.h"],
            extra_compile_args=FLAGS,
            optional=True,
        )
    ]
)
