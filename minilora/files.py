"""Files that are whole or not there: everything is written under a temporary name, then renamed.

``os.replace`` is atomic on every system, so a reader finds the old file or the new one, never half
of one, even after a killed run. tensor_files.py does the same for tensors.

Several files cannot be renamed at once. ``write_together`` first notes the renames in
``.swap.json``; after a kill ``finish_swap``, which readers and the next save call, does the rest.
So a folder holds the old files or the new ones. A reader that knows nothing of this finds at worst
that the files named in ``remove`` are missing.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SWAP = ".swap.json"  # stands in a folder while its files are being renamed
SAVING = ".saving"  # ends the names of temporary files
STARTED = time.time()


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

    The renames wait until all files are whole, and are finished by ``finish_swap`` after a kill.
    ``remove`` names files that would contradict the new ones; they are out of the way before the
    renames. ``aside`` (name, other name) renames such a file instead; formats/peft_files.py says
    what for. What killed saves left is swept. Raises as ``write_atomically``.
    """
    ready: dict[str, Path] = {}
    hidden_away: dict[Path, Path] = {}  # stale files until all new ones stand, and their places
    name, put_back, changed = next(iter(files)), None, False
    journal: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish_swap(folder)
        sweep(folder)
        for name, write in files.items():
            ready[name] = temporary_beside(folder / name)
            write(ready[name])
            # mkstemp's 0600 would hide a shared model from its other readers
            ready[name].chmod(0o666 & ~current_umask())
        for name in (*files, *remove):
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder of that name is in the way")
        if aside is None and len(files) + len(remove) > 1:
            renames = {name: temporary.name for name, temporary in ready.items()}
            swap = {"pid": os.getpid(), "remove": list(remove), "files": renames}
            journal = [temporary_beside(folder / SWAP)]
            json_writer(swap)(journal[0])
            os.replace(journal[0], folder / SWAP)
            journal = [folder / SWAP]
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
        (folder / SWAP).unlink(missing_ok=True)
    except BaseException as error:
        if put_back is not None:
            os.replace(*put_back)
        if not changed:
            for hidden, before in hidden_away.items():
                os.replace(hidden, before)
        for temporary_file in (*journal, *ready.values()):
            temporary_file.unlink(missing_ok=True)
        if (failure := reworded(error, folder / name, changed)) is None:
            raise
        raise failure from error


def reworded(error: BaseException, file: Path, changed: bool) -> OSError | None:
    """A disk's error as a sentence that says what became of the folder; None for another error."""
    if isinstance(error, OSError):
        reason, number = error.strerror or str(error), error.errno or 0
    elif "I/O error" in str(error):  # safetensors wraps a full disk in its own error
        reason, number = str(error), 0
    else:
        return None
    state = "Some files are new already: save again" if changed else "Nothing was changed"
    message = f"could not write {file}: {reason}. {state}"
    return OSError(number, f"{message}; free some space or choose another folder")


def temporary_beside(path: Path) -> Path:
    """A new empty file, whose name says for which file and by which process it is made."""
    ending = f".{os.getpid()}{SAVING}"
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=ending, dir=path.parent)
    os.close(handle)
    return Path(temporary)


def finish_swap(folder: Path, patience: float = 5.0) -> None:
    """Finish what a killed ``write_together`` began to rename; wait while one is still at it.

    Raises ``ValueError`` where another process keeps writing, or the folder is read-only.
    """
    journal, deadline = folder / SWAP, time.monotonic() + patience
    while journal.exists():
        try:
            swap = read_json(journal)
            if not is_running(swap["pid"]) or time.time() - journal.stat().st_mtime > 60:
                complete(folder, swap["files"], swap["remove"])
                journal.unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if journal.exists():  # else another process has just finished it
                message = f"a save into {folder} was killed, and cannot be finished: {error!r}"
                raise ValueError(f"{message}. Save again, or remove {journal}") from error
        if time.monotonic() > deadline:
            raise ValueError(f"{folder} is being written: read it when the save has ended")
        time.sleep(0.01)


def complete(folder: Path, files: Mapping[str, str], remove: Sequence[str]) -> None:
    """The renames of a swap that are not done yet, in their order."""
    if any(Path(name).name != name for name in (*files, *files.values(), *remove)):
        raise ValueError("it names files outside its folder")
    waiting = {name: folder / other for name, other in files.items() if (folder / other).exists()}
    for name in remove:
        if name in waiting or name not in files:
            (folder / name).unlink(missing_ok=True)
        (folder / f".{name}.before").unlink(missing_ok=True)
    for name, temporary in waiting.items():
        os.replace(temporary, folder / name)


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that have ended, and any that are a day old."""
    for file in folder.glob(f".*{SAVING}"):
        try:
            written, owner = file.stat().st_mtime, int(file.name.split(".")[-2])
            # an earlier process may have had our number
            alive = written >= STARTED if owner == os.getpid() else is_running(owner)
            if not alive or time.time() - written > 86_400:
                file.unlink()
        except (OSError, ValueError):
            continue  # gone already, or of another make


def is_running(pid: int) -> bool:
    """Whether a process is alive; on Windows, where asking would end it, always True."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True


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


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, atomically."""
    return write_atomically(path, text_writer(text))


def write_json(path: str | Path, value: Any) -> Path:
    """Write a JSON file, atomically."""
    return write_atomically(path, json_writer(value))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; ``ValueError`` names the file if it is missing, broken or no object."""
    try:
        return json_object(Path(path).read_bytes(), path)
    except OSError as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}") from error


def read_text(path: str | Path, expected: str = "a text file") -> str:
    """A text in UTF-8. Raises ``ValueError`` that names the file, and what was ``expected``."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: expected {expected}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text, by the reader that Python brings from 3.11 on, before it by tomli.

    Raises ``ValueError`` that says the line.

    >>> parse_toml("train.steps = 500")
    {'train': {'steps': 500}}
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


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
