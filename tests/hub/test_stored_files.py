"""What arrives is the files of one adapter, no fewer and no more, and as its manifest says."""

from dataclasses import replace

import pytest

from minilora.hub.adapter import CONFIG, TENSORS, read_adapter
from minilora.hub.compression import compressed
from minilora.hub.manifest import described
from minilora.hub.stored_files import ROUTES, check_arrived, listed

from .adapters import make_adapter

SMALL = "nf4.safetensors"


@pytest.fixture
def arrived(tmp_path):
    """A manifest, and the files that may come with it."""
    adapter = read_adapter(make_adapter(tmp_path / "mine"))
    files = adapter.files()
    manifest = described("naval", adapter, listed(files), {}, "me")
    small = compressed(adapter.tensors, "nf4")
    return manifest, {**files, ROUTES: b"for the router", SMALL: small, "README.md": b"Hi"}


@pytest.mark.parametrize("paths", [(CONFIG, TENSORS), (CONFIG, TENSORS, ROUTES)], ids=len)
def test_the_files_of_one_adapter_are_taken(arrived, paths):
    manifest, files = arrived
    check_arrived(manifest, {path: files[path] for path in paths})


@pytest.mark.parametrize(
    "paths",
    [(), (CONFIG,), (TENSORS,), (CONFIG, TENSORS, SMALL), (CONFIG, TENSORS, "README.md"),
     (CONFIG, ROUTES), (TENSORS, ROUTES)],
    ids="+".join,
)  # fmt: skip
def test_fewer_or_more_are_refused(arrived, paths):
    manifest, files = arrived
    there = ", ".join(sorted(paths)) or "none"
    with pytest.raises(ValueError, match="expected the files of one adapter, got") as error:
        check_arrived(manifest, {path: files[path] for path in paths})
    assert str(error.value).endswith(f"got {there}")


@pytest.mark.parametrize("claim", ["content", "settings", "architecture", "tensors"])
def test_each_of_the_manifests_claims_is_checked(arrived, claim):
    manifest, files = arrived
    other = {"settings": {**manifest.settings, "r": 4.0}}.get(claim, "0" * 16)
    with pytest.raises(ValueError, match=r"naval@0.0.0 arrived .* than its manifest claims"):
        check_arrived(replace(manifest, **{claim: other}), {p: files[p] for p in (CONFIG, TENSORS)})
