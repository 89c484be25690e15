"""Every byte that a supernode sends: recorded between it and the link, read and bounded by kind.

What may leave is named here, so that anything else fails: the paths, the kinds of objects, the
names of arrays and counts, and for each the most bytes it may have beside its numbers. Texts are
looked for in clear, as UTF-16, base64 and hex; what is packed in another way has no room.
"""

import base64
import contextlib
import hashlib
import io
import json
import re
import socket
import threading
import zlib
from collections import Counter

import numpy as np
from flwr.app import MetricRecord
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

FLEET = "/v1/fleet/"
POLLS = {  # the most bytes of a body: who this is (keys), that it lives, what it asks for
    "register-node": 300, "activate-node": 300, "send-node-heartbeat": 40, "pull-messages": 40,
    "get-run": 60, "get-fab": 120, "pull-object": 120, "confirm-message-received": 120,
}  # fmt: skip
BESIDE = {"ArrayChunk": 128, "Array": 100, "MetricRecord": 40, "Message": 220, "RecordDict": 200}
HEAD = 900  # of a request: names of the program, a key and a signature
SAID = "<class 'RuntimeError'>:<'this client failed; its own log says why'>"


class Recorder(threading.Thread):
    """Stands between a node and the link, and keeps every byte that the node sends."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.link, self.sent = port, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            own, _ = self.listener.accept()
            link = socket.create_connection(("127.0.0.1", self.link))
            self.sent.append(bytearray())
            for pair in ((own, link, self.sent[-1]), (link, own, bytearray())):
                threading.Thread(target=self.pass_on, args=pair, daemon=True).start()

    def pass_on(self, source, target, kept):
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                kept += piece
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def requests(self):
        """(path, head, body) of each HTTP request."""
        found = []
        for connection in self.sent:
            wire = bytes(connection)
            while wire:
                head, _, rest = wire.partition(b"\r\n\r\n")
                length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
                found.append((head.split()[1].decode(), head, rest[:length]))
                wire = rest[length:]
        return found


def objects_in(requests):
    """(kind, body) of each object that was pushed, and their ids."""
    objects, ids = [], set()
    for path, _, body in requests:
        if path == f"{FLEET}push-object":
            content = PushObjectRequest.FromString(body).object_content
            assert len(body) - len(content) < 170, "more beside an object than its name"
            kind, children, length = get_object_head_values_from_object_content(content)
            plain = f"{kind} {','.join(children)} {length}"
            assert len(content) == len(plain) + 1 + length, f"more in a {kind} than its body"
            objects.append((kind, content[len(plain) + 1 :], content))
            ids.add(hashlib.sha256(content).hexdigest())
    return objects, ids


def check(requests, arrays, counts, rounds, texts):
    """Fail unless a node sent in each round ``arrays`` and ``counts``, and nothing else.

    ``arrays``: tensors of the right shape by name; none: the node failed in each round.
    """
    paths = {path.removeprefix(FLEET) for path, _, _ in requests}
    assert paths <= {*POLLS, "push-messages", "push-object"}, f"another path: {paths}"
    for path, head, body in requests:
        assert len(head) < HEAD, f"a head of {len(head)} bytes"
        assert len(body) <= POLLS.get(path.removeprefix(FLEET), len(body)), f"{path}: {len(body)}"
    objects, ids = objects_in(requests)
    per_round = {"Message": 1}
    if arrays:
        per_round |= {"RecordDict": 1, "MetricRecord": 1, "ArrayRecord": 1}
        per_round |= {"Array": len(arrays), "ArrayChunk": len(arrays)}
    kinds = Counter(kind for kind, _, _ in objects)
    assert kinds == {kind: rounds * n for kind, n in per_round.items()}, f"other objects: {kinds}"
    shapes = Counter()
    for kind, body, content in objects:
        numbers = 0
        if kind == "ArrayChunk":
            array = np.load(io.BytesIO(body), allow_pickle=False)
            numbers = array.nbytes
            shapes[array.shape, array.dtype.str] += 1
        elif kind == "MetricRecord":
            assert dict(MetricRecord.inflate(content)) == counts, "other counts"
        elif kind == "ArrayRecord":
            names = json.loads(body)
            assert names.keys() == arrays.keys(), "other names of arrays"
            assert all(re.fullmatch("[0-9a-f]{64}", each) for each in names.values()), "no ids"
        if kind in BESIDE:
            assert len(body) - numbers <= BESIDE[kind], f"a {kind} of {len(body)} bytes"
    known = Counter((tuple(each.shape), "<f4") for each in arrays.values())
    assert shapes == {key: rounds * n for key, n in known.items()}, f"other arrays: {shapes}"
    check_messages(requests, ids, bool(arrays))
    wire = b"".join(head + body for _, head, body in requests)
    for text in texts:
        assert not any(form in wire for form in forms(text)), f"in the bytes: {text}"


def check_messages(requests, ids, answers):
    """Fail unless the messages name the objects that were pushed, and no error has own words."""
    for path, _, body in requests:
        if path == f"{FLEET}push-messages":
            pushed = PushMessagesRequest.FromString(body)
            named = [pushed.message_object_trees[0]]
            for tree in named:
                named.extend(tree.children)
            assert {tree.object_id for tree in named} <= ids, "names what was not pushed"
            (message,) = pushed.messages_list
            assert message.error.reason == ("" if answers else SAID), "an error's own words"
            assert len(body) - 70 * len(named) < 600, f"a message of {len(body)} bytes"


def forms(text):
    """The bytes of a text in clear, as UTF-16, hex, and base64 at each of its three beginnings."""
    plain = text.encode()
    shifted = [base64.b64encode(b"\0" * n + plain)[4 if n else 0 : -4] for n in range(3)]
    return [plain, text.encode("utf-16-le"), plain.hex().encode(), *shifted]


def changed(requests, path, change):
    """The requests with the body of the first that goes to ``path`` changed."""
    n = next(n for n, request in enumerate(requests) if request[0] == f"{FLEET}{path}")
    where, head, body = requests[n]
    return [*requests[:n], (where, head, change(body)), *requests[n + 1 :]]


def with_object(requests, kind, change):
    """The requests with the body of the first object of a kind changed."""
    for n, (path, head, body) in enumerate(requests):
        if path == f"{FLEET}push-object":
            pushed = PushObjectRequest.FromString(body)
            own, children, length = get_object_head_values_from_object_content(
                pushed.object_content
            )
            if own == kind:
                inner = change(pushed.object_content[-length:])
                plain = f"{kind} {','.join(children)} {len(inner)}"
                pushed.object_content = plain.encode() + b"\0" + inner
                new = path, head, pushed.SerializeToString()
                return [*requests[:n], new, *requests[n + 1 :]]
    raise AssertionError(f"no {kind} was sent")


def with_reason(body):
    """A message with an error's own words."""
    pushed = PushMessagesRequest.FromString(body)
    pushed.messages_list[0].error.reason = "line 1: not valid JSON"
    return pushed.SerializeToString()


def leaks(requests, texts):
    """(what ``check`` must say, the requests with a leak in them), for each kind we thought of."""
    packed = zlib.compress("\n".join(texts).encode())
    (path, head, body), *rest = requests
    coded = base64.b64encode(b"ab" + texts[0].encode())
    return [
        ("another path", [*requests, (f"{FLEET}push-logs", head, b"")]),
        ("a head of", [(path, head + b"\r\nx: " + base64.b64encode(packed), body), *rest]),
        ("send-node-heartbeat", changed(requests, "send-node-heartbeat", lambda b: b + packed)),
        ("more beside an object", changed(requests, "push-object", lambda b: (
            PushObjectRequest(node=PushObjectRequest.FromString(b).node,
                              object_id=packed.hex()).SerializeToString()))),
        ("other objects", [*requests, *[
            r for r in requests if r[0] == f"{FLEET}push-object"][:1]]),
        ("other counts", with_object(requests, "MetricRecord", lambda b: MetricRecord(
            {"loss": 0.5}).deflate().split(b"\0", 1)[1])),
        ("other names", with_object(requests, "ArrayRecord", lambda b: json.dumps(
            {**json.loads(b), texts[0]: "0" * 64}).encode())),
        ("no ids", with_object(requests, "ArrayRecord", lambda b: json.dumps(
            dict.fromkeys(json.loads(b), packed.hex())).encode())),
        ("a ArrayChunk of", with_object(requests, "ArrayChunk", lambda b: b + packed)),
        ("other arrays", with_object(requests, "ArrayChunk", lambda b: as_npy(packed))),
        ("a Array of", with_object(requests, "Array", lambda b: b + packed)),
        ("a Message of", with_object(requests, "Message", lambda b: b + packed)),
        ("an error's own words", changed(requests, "push-messages", with_reason)),
        ("in the bytes", [(path, head[:300] + coded, body), *rest]),
    ]  # fmt: skip


def as_npy(content):
    """Bytes as an array of numpy's format."""
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(content, np.uint8))
    return buffer.getvalue()
