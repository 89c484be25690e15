"""The one thing that pyproject.toml cannot say: flags for the compiler of the optional C kernel.

``optional``: without a compiler the installation goes on, and minilora computes with tensors. The
"extension" is a plain shared library that minilora/nf4/kernel.py opens with ctypes. A wheel that
may hold one is for this kind of machine and this Python; with MINILORA_KERNEL=off it is for all.
"""

import os

from setuptools import Extension, setup

FLAGS = [] if os.name == "nt" else ["-O3", "-ffp-contract=off"]  # MSVC's own are right
KERNEL = Extension(
    "minilora.nf4._kernel",
    ["minilora/nf4/kernel.c"],
    depends=["minilora/nf4/kernel_x86.h"],
    extra_compile_args=FLAGS,
    optional=True,
)
setup(ext_modules=[] if os.environ.get("MINILORA_KERNEL") == "off" else [KERNEL])
