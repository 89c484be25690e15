"""Between hubs: one file, or blobs behind a static server; whatever arrives is checked."""

import errno
import functools
import http.server
import threading
import warnings
import zipfile

import pytest

from minilora.hub import Hub
from minilora.hub.blobs import digest
from minilora.hub.manifest import Manifest

from .adapters import flip_bit, make_adapter


@pytest.fixture
def sent(tmp_path):
    """A hub with one adapter, and that adapter."""
    hub = Hub(tmp_path / "sender")
    facts = {"metrics": {"exact": 0.9}, "tags": ["en"]}
    return hub, hub.push(
        "naval", make_adapter(tmp_path / "mine"), metadata=facts, examples=["Status?"]
    )


@pytest.fixture
def receiver(tmp_path):
    return Hub(tmp_path / "receiver")


@pytest.fixture
def address(sent):
    """The manifest's address on a server of this machine that knows nothing but files."""
    hub, version = sent
    handler = functools.partial(QuietHandler, directory=str(hub.folder / "blobs"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{version.digest[:2]}/{version.digest}"
    server.shutdown()
    server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """The standard library's static server without its log."""

    def log_message(self, *arguments):
        pass


def test_a_version_travels_in_one_file(sent, receiver, tmp_path):
    hub, version = sent
    file = hub.export("naval", tmp_path / "naval.zip")
    arrived = receiver.import_file(file)
    assert (arrived.manifest, arrived.digest) == (version.manifest, version.digest)
    assert receiver.pull("naval").name == hub.pull("naval").name
    assert receiver.import_file(file) == arrived, "twice is once"
    assert receiver.verify() == []
    assert file.read_bytes() == hub.export("naval", tmp_path / "again.zip").read_bytes()


def test_another_version_of_the_same_number_is_refused(sent, receiver, tmp_path):
    receiver.push("naval", make_adapter(tmp_path / "other", 5))
    with pytest.raises(ValueError, match=r"naval@1.0.0 exists, and a version never changes"):
        receiver.import_file(sent[0].export("naval", tmp_path / "naval.zip"))


def test_every_flipped_byte_of_the_file_is_found(sent, receiver, tmp_path):
    """Or is one of the zip format's own that say nothing; then what arrives is what was sent."""
    file = sent[0].export("naval", tmp_path / "naval.zip")
    whole, refused = file.read_bytes(), 0
    for place in range(0, len(whole), 97):
        file.write_bytes(whole)
        flip_bit(file, place)
        try:
            assert receiver.import_file(file).digest == sent[1].digest
        except ValueError:
            refused += 1
    assert refused > 0.9 * len(whole) / 97


def with_manifest(file, change):
    """Rewrite an exported file with another manifest, as a forger could."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"architecture": "aaaa', b'"architecture": "baaa', "arrived for another base"),
        (b'"r": 2.0', b'"r": 4.0', "arrived with other tensors"),
        (b'"adapter_config.json"', b'"../adapter_config.json"', "expected the manifest"),
        (b'"adapter_config.json"', b'"README.md"', "expected the files of one adapter"),
        (b'"name": "naval"', b'"name": "../naval"', "expected the manifest"),
        (b'"version": "1.0.0"', b'"version": "new"', "expected the manifest"),
        (b'"creator"', b'"owner"', "expected the manifest"),
    ],
)
def test_a_forged_manifest_is_refused(sent, receiver, tmp_path, old, new, reason):
    def forge(members):
        assert old in members["manifest.json"]
        members["manifest.json"] = members["manifest.json"].replace(old, new)

    file = with_manifest(sent[0].export("naval", tmp_path / "naval.zip"), forge)
    with pytest.raises(ValueError, match=reason):
        receiver.import_file(file)
    assert not receiver.folder.exists()


def test_a_pickle_in_the_place_of_the_tensors_is_refused_unread(sent, receiver, tmp_path):
    """The forger sets the hashes right; the bytes are still no safetensors file."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("boom").touch, ())

    evil = pickle.dumps(Bomb())

    def forge(members):
        manifest = Manifest.parse(members["manifest.json"].decode())
        files = {**manifest.files, "adapter_model.safetensors": [digest(evil), len(evil)]}
        from dataclasses import replace

        members["manifest.json"] = replace(manifest, files=files).text.encode()
        members[f"blobs/{digest(evil)}"] = evil

    file = with_manifest(sent[0].export("naval", tmp_path / "naval.zip"), forge)
    with pytest.raises(ValueError, match="safetensors"):
        receiver.import_file(file)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + b"\0" * 18])
def test_something_else_is_a_sentence(receiver, tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged, or is not an exported adapter"):
        receiver.import_file(tmp_path / "x.zip")
    with pytest.raises(ValueError, match="does not exist"):
        receiver.import_file(tmp_path / "y.zip")


def test_a_file_of_another_user_is_not_called_damaged(receiver, tmp_path, monkeypatch):
    def refuse(file):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(ValueError, match=r"x.zip cannot be read: Permission denied$"):
        receiver.import_file(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("place", "value"),
    {"encrypted": (8, 1), "deflate": (10, 8), "bzip2": (10, 12), "lzma": (10, 14)}.values(),
    ids=["encrypted", "deflate", "bzip2", "lzma"],
)
def test_one_wrong_bit_in_the_zips_directory_is_a_sentence(sent, receiver, tmp_path, place, value):
    """It names a cipher, or a compression in which the bytes are nonsense."""
    file = sent[0].export("naval", tmp_path / "naval.zip")
    content = bytearray(file.read_bytes())
    for header, field in ((b"PK\1\2", place), (b"PK\3\4", place - 2)):
        content[content.index(header) + field] = value
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged, or is not an exported adapter"):
        receiver.import_file(file)
    assert not receiver.folder.exists()


def test_a_name_in_the_zips_directory_that_is_no_utf8_is_a_sentence(sent, receiver, tmp_path):
    file = sent[0].export("naval", tmp_path / "naval.zip")
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 9] |= 8  # bit 11 of the flags: the name is UTF-8
    content[entry + 46] = 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged, or is not an exported adapter.*utf-8"):
        receiver.import_file(file)


def test_a_machine_without_memory_is_not_called_a_damaged_file(
    sent, receiver, tmp_path, monkeypatch
):
    def full(*arguments):
        raise MemoryError

    file = sent[0].export("naval", tmp_path / "naval.zip")
    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(MemoryError):
        receiver.import_file(file)


def test_a_static_server_is_enough(sent, receiver, address):
    folder = receiver.pull(address)
    assert folder.name == sent[0].pull("naval").name
    assert receiver.show("naval").digest == sent[1].digest
    assert receiver.pull(address) == folder
    assert receiver.verify() == []


def test_a_server_that_lies_is_found_out(sent, receiver, address):
    hub, version = sent
    sha = version.manifest.files["adapter_model.safetensors"][0]
    flip_bit(hub.blobs.path(sha))
    with pytest.raises(ValueError, match=r"adapter_model.safetensors arrived damaged"):
        receiver.pull(address)
    hub.blobs.path(sha).write_bytes(b"x" * 10_000_000)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors arrived damaged"):
        receiver.pull(address)
    flip_bit(hub.blobs.path(version.digest))
    with pytest.raises(ValueError, match="the manifest arrived damaged"):
        receiver.pull(address)
    assert not receiver.folder.exists()


def test_a_bad_address_is_a_sentence(receiver, address):
    with pytest.raises(ValueError, match="expected an address that ends in"):
        receiver.pull(address[:-1])
    with pytest.raises(OSError, match="the server answers 404") as missing:
        receiver.pull(f"{address.rpartition('/')[0][:-2]}00/{'0' * 64}")
    with pytest.raises(OSError, match="cannot be reached") as error:
        receiver.pull(f"http://127.0.0.1:9/00/{'0' * 64}")
    for told in (missing.value, error.value):
        assert type(told) is OSError, "a number of the system's would name a class and a cause"


def test_compressed_versions_travel_too(sent, receiver, tmp_path):
    hub = sent[0]
    small = hub.compress("naval")
    arrived = receiver.import_file(hub.export(small.spec, tmp_path / "small.zip"))
    assert arrived.version == "1.0.0+nf4"
    one, other = hub.read(small.spec), receiver.read("naval@1.0.0+nf4")
    assert one.content_id == other.content_id == arrived.manifest.content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert receiver.show("naval").version == "1.0.0+nf4", "nothing else is left of it here"
