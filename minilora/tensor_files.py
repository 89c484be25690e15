"""Tensors in safetensors files: written whole or not at all, read when they are asked for.

A pickle is never written and never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor


def tensor_writer(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """Writes a safetensors file with the ``format: pt`` mark that peers look for."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return lambda path: save_file(ready, path, {"format": "pt", **(metadata or {})})


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
