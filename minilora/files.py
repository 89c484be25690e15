"""Files that are whole or not there: everything is written under a temporary name, then renamed.

``os.replace`` is atomic on every system, so a reader, or a run that was killed half-way, finds the old file or the new
one, never half of one. Tensors go through safetensors; a pickle is never written and never read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; the folder is made if need be.

    Raises ``OSError`` that names the file (a full disk, a folder without permission); what stood there before stays.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~current_umask())  # mkstemp's 0600 would hide a shared model from its other readers
        os.replace(temporary, path)
    except Exception as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) or "I/O error" in str(error):  # safetensors wraps a full disk in its own error
            reason = getattr(error, "strerror", None) or str(error)
            number = getattr(error, "errno", None) or 0
            raise OSError(
                number, f"could not write {path}: {reason}. Nothing was changed; free some space or choose another folder"
            ) from error
        raise
    return path


def current_umask() -> int:
    """The permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text with ``\\n`` line ends, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode("utf-8"))

    return write_atomically(path, write)


def write_json(path: str | Path, value: Any) -> Path:
    """Write indented JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file, atomically, with the ``format: pt`` mark that peers look for."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(ready, temporary, {"format": "pt", **(metadata or {})}))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ``ValueError`` that names the file when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: the tensors should be in a safetensors file of that name") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}): it is damaged or something else") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object. Raises ``ValueError`` that names the file when it is missing, broken or no object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object {{…}}, got {type(value).__name__}")
    return value
