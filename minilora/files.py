"""Files that are whole or not there: everything is written under a temporary name, then renamed.

``os.replace`` is atomic on every system, so a reader finds the old file or the new one, never half
of one, even after a killed run. Tensors go through safetensors; a pickle is never written and never
read.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; makes missing folders.

    Raises ``OSError`` that names the file (a full disk, a folder without permission); an older file
    stays.
    """
    path = Path(path)
    write_together(path.parent, {path.name: write})
    return path


def write_together(
    folder: Path,
    files: Mapping[str, Callable[[Path], None]],
    remove: Sequence[str] = (),
    aside: tuple[str, str] | None = None,
) -> None:
    """Write several files of one folder: all under temporary names, then the renames, in order.

    The renames wait until all files are whole. ``remove`` names files that would contradict the new
    ones; they are out of the way before the renames. ``aside`` (name, other name) renames such a
    file instead; formats/peft_files.py says what for. Raises as ``write_atomically``.
    """
    ready: dict[str, Path] = {}
    # where stale files are hidden until all new ones stand, and where they were
    hidden_away: dict[Path, Path] = {}
    name, put_back, changed = next(iter(files)), None, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            os.close(handle)
            ready[name] = Path(temporary)
            write(ready[name])
            # mkstemp's 0600 would hide a shared model from its other readers
            ready[name].chmod(0o666 & ~current_umask())
        for name in (*files, *remove):
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder of that name is in the way")
        for stale in remove:
            if (folder / stale).exists():
                hidden = folder / f".{stale}.before"
                os.replace(folder / stale, hidden)
                hidden_away[hidden] = folder / stale
        if aside is not None and (folder / aside[0]).exists():
            os.replace(folder / aside[0], folder / aside[1])
            put_back = (folder / aside[1], folder / aside[0])
        for name, temporary_file in ready.items():
            os.replace(temporary_file, folder / name)
            put_back, changed = None, True
        for hidden in hidden_away:
            hidden.unlink(missing_ok=True)
    except BaseException as error:
        if put_back is not None:
            os.replace(*put_back)
        if not changed:
            for hidden, before in hidden_away.items():
                os.replace(hidden, before)
        for temporary_file in ready.values():
            temporary_file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason, number = error.strerror or str(error), error.errno or 0
        elif "I/O error" in str(error):  # safetensors wraps a full disk in its own error
            reason, number = str(error), 0
        else:
            raise
        state = "Some files are new already: save again" if changed else "Nothing was changed"
        message = f"could not write {folder / name}: {reason}. {state}"
        raise OSError(number, f"{message}; free some space or choose another folder") from error


def current_umask() -> int:
    """The permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def text_writer(text: str) -> Callable[[Path], None]:
    """Writes UTF-8 with ``\\n`` line ends."""

    def write(path: Path) -> None:
        path.write_bytes(text.encode("utf-8"))

    return write


def json_writer(value: Any) -> Callable[[Path], None]:
    """Writes indented JSON."""
    return text_writer(json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def tensor_writer(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """Writes a safetensors file with the ``format: pt`` mark that peers look for."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return lambda path: save_file(ready, path, {"format": "pt", **(metadata or {})})


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, atomically."""
    return write_atomically(path, text_writer(text))


def write_json(path: str | Path, value: Any) -> Path:
    """Write a JSON file, atomically."""
    return write_atomically(path, json_writer(value))


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file, atomically."""
    return write_atomically(path, tensor_writer(tensors, metadata))


class TensorFiles(Mapping[str, "Tensor"]):
    """The tensors of safetensors files as one mapping, each read only when it is asked for.

    Raises ``ValueError`` that names the file when one is missing or damaged.
    """

    def __init__(self, *paths: Path):
        from safetensors import SafetensorError, safe_open

        self.handles: dict[str, Any] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            try:
                handle = safe_open(path, framework="pt")
                self.handles |= dict.fromkeys(handle.keys(), handle)
                self.metadata |= handle.metadata() or {}
            except FileNotFoundError:
                raise ValueError(
                    f"{path} does not exist: expected a safetensors file there"
                ) from None
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} is not a readable safetensors file ({error}): "
                    "it is damaged or has another format"
                ) from error

    def __getitem__(self, name: str) -> Tensor:
        return self.handles[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header alone."""
        return tuple(self.handles[name].get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self.handles)

    def __len__(self) -> int:
        return len(self.handles)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; ``ValueError`` names it if it is missing or damaged."""
    return read_tensors_and_metadata(path)[0]


def read_tensors_and_metadata(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata. Raises as ``read_tensors``."""
    files = TensorFiles(Path(path))
    return dict(files), files.metadata


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; ``ValueError`` names the file if it is missing, broken or no object."""
    try:
        return json_object(Path(path).read_bytes(), path)
    except OSError as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}") from error


def json_object(text: bytes, path: str | Path) -> dict[str, Any]:
    """A JSON object from a file's content; ``path`` is for the error."""
    try:
        value = json.loads(text.decode("utf-8"))
    # bad UTF-8, bad JSON and numbers of 5,000 digits are ValueErrors
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object {{…}}, got {type(value).__name__}")
    return value
