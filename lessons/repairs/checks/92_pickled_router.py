"""Checker of repair 92. The oracle: the arrays themselves, and files that would leave a trace."""

import contextlib
import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
from hypothesis.strategies import integers

from minilora.learn import Wrong, cases, close


class Trace:
    """Read from a pickle, it makes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def hostile_files(trace, saved):
    """Files that run code when a pickle's reader gets them, and files that are broken."""
    array = io.BytesIO()
    np.save(array, np.array([Trace(trace)], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, names=np.array([Trace(trace)], dtype=object), centroids=np.zeros((1, 2)))
    yield "a pickle", pickle.dumps(Trace(trace))
    yield "an array of objects", array.getvalue()
    yield "an archive of objects", archive.getvalue()
    yield "17 bytes of noise", b"\x93\x01 not a router."
    yield "an empty file", b""
    yield "the first half of its own file", saved[: len(saved) // 2]


def hidden_pickles(saved, trace):
    """Files that begin as the learner's own and go on as a pickle: a header proves nothing."""
    tail = pickle.dumps(Trace(trace))
    marks = (n for n, byte in enumerate(saved) if byte == tail[0])  # where save may have put one
    return [saved[:n] + tail for n in sorted({*range(65), *marks})]


@cases(
    20,
    first={"topics": 5, "d": 3, "seed": 0},
    topics=integers(1, 6),
    d=integers(1, 5),
    seed=integers(0, 999),
)
def check_make_router(answer, topics, d, seed):
    """Saved and loaded it is the same router, and no file of a stranger runs."""
    draw = np.random.default_rng(seed)
    names = [f"topic {n} – “{draw.integers(99)}”" for n in range(topics)]
    centroids = draw.normal(size=(topics, d)).astype(np.float32)
    router, case = answer(names, centroids.copy()), f"{topics} topics, d = {d}"
    with tempfile.TemporaryDirectory() as folder:
        file, trace = Path(folder) / "router.bin", Path(folder) / "trace"
        router.save(file)
        back = router.load(file)
        for vector in draw.normal(size=(4, d)):
            right = names[int(np.square(centroids - vector).sum(axis=1).argmin())]
            if (got := back.route(vector)) != right:
                raise Wrong(f"{case}: after save and load route gives {got!r}, expected {right!r}")
        close(back.centroids, centroids, what="the loaded centroids", case=case, tolerance=0)
        for kind, content in hostile_files(trace, file.read_bytes()):
            (Path(folder) / "strange.bin").write_bytes(content)
            try:
                loaded: object = type(router).load(Path(folder) / "strange.bin")
            except ValueError:
                loaded = ValueError
            except Exception as error:
                loaded = error
            if trace.exists():
                raise Wrong(f"{case}: load ran 1 program that lay in the file, {kind}")
            if loaded is not ValueError:
                raise Wrong(f"{case}: of {kind} load made {loaded!r:.90}, expected ValueError")
        for content in hidden_pickles(file.read_bytes(), trace):
            (Path(folder) / "strange.bin").write_bytes(content)
            with contextlib.suppress(Exception):  # any error will do, but no code of the file's
                type(router).load(Path(folder) / "strange.bin")
            if trace.exists():
                raise Wrong(f"{case}: load ran 1 program that lay in the file, behind a header")


class Pickled:
    """The script as it circulates."""

    def __init__(self, names, centroids):
        self.names, self.centroids = list(names), np.asarray(centroids)

    def route(self, vector):
        """The nearest."""
        return self.names[int(np.square(self.centroids - vector).sum(axis=1).argmin())]

    def save(self, file):
        """A pickle."""
        Path(file).write_bytes(pickle.dumps((self.names, self.centroids)))

    @classmethod
    def load(cls, file):
        """Runs what it finds."""
        return cls(*pickle.loads(Path(file).read_bytes()))


class BehindAHeader(Pickled):
    """Its own header, and then a pickle all the same."""

    def save(self, file):
        """Six letters first."""
        Path(file).write_bytes(b"ROUTER" + pickle.dumps((self.names, self.centroids)))

    @classmethod
    def load(cls, file):
        """Whoever knows the header is trusted."""
        content = Path(file).read_bytes()
        if not content.startswith(b"ROUTER"):
            raise ValueError("not a router")
        return cls(*pickle.loads(content[6:]))


class LooksAtTheResult(Pickled):
    """Looks whether it is a router, when it is too late."""

    @classmethod
    def load(cls, file):
        """Runs it, then checks the type."""
        content = pickle.loads(Path(file).read_bytes())
        if not isinstance(content, tuple):
            raise ValueError("not a router")
        return cls(*content)


class ArraysOfObjects(Pickled):
    """NumPy's format, with the door left open."""

    def save(self, file):
        """An archive."""
        with open(file, "wb") as stream:
            np.savez(stream, names=np.array(self.names, dtype=object), centroids=self.centroids)

    @classmethod
    def load(cls, file):
        """allow_pickle is the door."""
        try:
            with np.load(file, allow_pickle=True) as parts:
                return cls(list(parts["names"]), parts["centroids"])
        except Exception as error:
            raise ValueError("not a router") from error


class OtherErrors(Pickled):
    """NumPy's format and a reader that is safe: a broken file ends in whatever it raises."""

    def save(self, file):
        """An archive of strings and numbers."""
        with open(file, "wb") as stream:
            np.savez(stream, names=np.array(self.names, dtype=str), centroids=self.centroids)

    @classmethod
    def load(cls, file):
        """Only what NumPy takes for a pickle is a ValueError."""
        with np.load(file, allow_pickle=False) as parts:
            return cls(parts["names"], parts["centroids"])


class RoundedJson(Pickled):
    """Safe, and no longer the same numbers."""

    def save(self, file):
        """Six digits."""
        rows = [[round(float(v), 6) for v in row] for row in self.centroids]
        Path(file).write_text(json.dumps([self.names, rows]), encoding="utf-8")

    @classmethod
    def load(cls, file):
        """Plain JSON."""
        try:
            names, rows = json.loads(Path(file).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError("not a router") from error
        return cls(names, np.array(rows, dtype=np.float32))


class Silent(RoundedJson):
    """Safe, and silent about a file that is not its own."""

    def save(self, file):
        """All digits."""
        Path(file).write_text(json.dumps([self.names, self.centroids.tolist()]), encoding="utf-8")

    @classmethod
    def load(cls, file):
        """An empty router for what cannot be read."""
        try:
            return super().load(file)
        except ValueError:
            return cls([], np.zeros((0, 1), dtype=np.float32))


WRONG = {
    "make_router": {
        "a pickle": Pickled,
        "a header, then a pickle": BehindAHeader,
        "looks at the result": LooksAtTheResult,
        "arrays of objects": ArraysOfObjects,
        "other errors": OtherErrors,
        "rounded": RoundedJson,
        "silent": Silent,
    }
}
