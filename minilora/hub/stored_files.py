"""Which files a version has in the store, and the two that its users get from them.

    stored                                                    given out
    adapter_config.json + adapter_model.safetensors           the same, to the bit
    adapter_config.json + fp16.safetensors | nf4.safetensors  the floats made again (compression.py)
    routes.safetensors, if it came with examples              nothing: it is for the router

Whatever comes from outside passes ``check_arrived``: its tensors must be those that its manifest
claims.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ..formats.base_fingerprint import Fingerprint
from .adapter import CONFIG, TENSORS, Adapter, read_adapter, tensor_file
from .blobs import digest
from .compression import KINDS, decompressed
from .manifest import Manifest

ROUTES = "routes.safetensors"  # hashed n-grams of a version's examples
SMALL = {kind: f"{kind}.safetensors" for kind in KINDS}


def listed(files: Mapping[str, bytes]) -> dict[str, list]:
    """Hash and size by path, as a manifest has them."""
    return {path: [digest(content), len(content)] for path, content in sorted(files.items())}


def given_out(manifest: Manifest, read: Callable[[str], bytes]) -> dict[str, bytes]:
    """PEFT's two files of a version; ``read`` gives a stored file by its path."""
    config = read(CONFIG)
    for path in SMALL.values():
        if path in manifest.files:
            base = Fingerprint(manifest.architecture, manifest.tensors)
            known = base if base.architecture else None
            return {
                CONFIG: config,
                TENSORS: tensor_file(json.loads(config), decompressed(read(path)), known),
            }
    return {CONFIG: config, TENSORS: read(TENSORS)}


def adapter_of(files: Mapping[str, bytes]) -> Adapter:
    """PEFT's two files as tensors and config, read as strictly as a folder."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for path in (CONFIG, TENSORS):
            Path(folder, path).write_bytes(files[path])
        return read_adapter(Path(folder))


def check_arrived(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Raise ``ValueError`` unless the files are of known kinds and hold the adapter that the
    manifest describes.
    """
    tensors = [path for path in (TENSORS, *SMALL.values()) if path in files]
    if CONFIG not in files or len(tensors) != 1 or files.keys() - {CONFIG, ROUTES, *tensors}:
        raise ValueError(
            f"expected the files of one adapter, got {', '.join(sorted(files)) or 'none'}"
        )
    adapter = adapter_of(given_out(manifest, files.__getitem__))
    base = adapter.base or Fingerprint("", "")
    spec, claim = f"{manifest.name}@{manifest.version}", "than its manifest claims"
    if (adapter.content_id, adapter.settings) != (manifest.content, dict(manifest.settings)):
        raise ValueError(f"{spec} arrived with other tensors {claim}")
    if (base.architecture, base.tensors) != (manifest.architecture, manifest.tensors):
        raise ValueError(f"{spec} arrived for another base {claim}")
