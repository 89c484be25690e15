# %% [markdown]
# # 92 · Repair: a router that reads a pickle
#
# Know first: lesson 20 · Difficulty ●●○ · 4 minutes to read · 5 seconds to run
#
# A router picks the adapter whose centroid is nearest to a question's vector. This one keeps its
# centroids in a file, as most scripts do. Whoever can write that file runs their code on your
# machine.


# %% [exercise] make_router
import pickle

import numpy as np


class Router:
    """The adapter whose centroid is nearest, kept in a file."""

    def __init__(self, names, centroids):
        self.names, self.centroids = list(names), np.asarray(centroids)

    def route(self, vector):
        return self.names[int(np.square(self.centroids - vector).sum(axis=1).argmin())]

    def save(self, file):
        with open(file, "wb") as stream:
            pickle.dump((self.names, self.centroids), stream)

    @classmethod
    def load(cls, file):
        with open(file, "rb") as stream:
            return cls(*pickle.load(stream))


def make_router(names, centroids):
    """A router with route(vector), save(file), and load(file), which gives a router back.

    names: strings; centroids: an array (topics, d). What is loaded has the same names, and the same
    centroids to the bit. load never runs code that lies in the file: it raises ValueError for a
    file that save did not write.
    """
    return Router(names, centroids)


# %% [markdown]
# A file from a stranger:

# %%
import tempfile
from pathlib import Path

from minilora.learn import check


class Greeting:
    """When it is read from a pickle, it calls a function of its author's choice."""

    def __reduce__(self):
        return print, ("  this line was printed by the file itself",)


file = Path(tempfile.mkdtemp()) / "router.bin"
file.write_bytes(pickle.dumps(Greeting()))
print("loading a router …")
try:
    make_router([], np.zeros((0, 2))).load(file)
except TypeError as error:
    print(f"  too late: {error}")

# %% [hints] make_router
# 1. Which function reads a file without running what is in it? A format of plain numbers needs a
#    reader of plain numbers.
# 2. `np.savez(stream, …)` writes several arrays; `np.load(stream, allow_pickle=False)` reads them,
#    and raises `ValueError` for a pickle. Names are an array of strings.
# 3. save: `np.savez(stream, names=np.array(self.names, dtype=str), centroids=self.centroids)`.
#    load: `cls(list(map(str, parts["names"])), parts["centroids"])`; of any other error than
#    ValueError it makes one.

# %%
check(make_router)

# %% [markdown]
# Nothing in this package reads a pickle: an adapter, a checkpoint, a router are safetensors and
# JSON. `torch.load` refuses such programs unless it is told `weights_only=False`; before
# `torch 2.6` that was its default.
