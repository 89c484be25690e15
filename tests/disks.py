"""Small file systems, for tests of what happens when a disk is full."""

import os
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(disk, size):
    """A file system in memory, of a ``size`` as mount writes it; skips without the right."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.name == "nt" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
