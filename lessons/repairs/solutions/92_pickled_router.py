"""Solution of repair 92."""

import zipfile

import numpy as np


class Router:
    """The adapter whose centroid is nearest, kept in a file of plain arrays."""

    def __init__(self, names, centroids):
        self.names, self.centroids = list(names), np.asarray(centroids)

    def route(self, vector):
        """The nearest centroid's name."""
        return self.names[int(np.square(self.centroids - vector).sum(axis=1).argmin())]

    def save(self, file):
        """Two arrays: strings and numbers."""
        with open(file, "wb") as stream:
            np.savez(stream, names=np.array(self.names, dtype=str), centroids=self.centroids)

    @classmethod
    def load(cls, file):
        """Reads arrays alone; whatever else lies there is an error."""
        try:
            with np.load(file, allow_pickle=False) as parts:
                return cls(list(map(str, parts["names"])), parts["centroids"])
        except (
            OSError,
            KeyError,
            EOFError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            raise ValueError(f"{file} is not a router's file: {error}") from error


def make_router(names, centroids):
    """The reader cannot run code, so the file's author does not matter."""
    return Router(names, centroids)
