"""Solutions of lesson 20."""

import hashlib

import numpy as np


def content_identity(tensors):
    """Names in order, each with its shape, then its bytes: nothing can be cut elsewhere."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].shape}\n".encode())
        total.update(tensors[name].tobytes())
    return total.hexdigest()


def route_by_centroid(x, labels, question, least):
    """Mean direction by topic; the nearest by cosine, if near enough."""
    unit = x / np.linalg.norm(x, axis=1)[:, None]  # (n, d)
    means = {topic: unit[labels == topic].mean(0) for topic in sorted(set(labels.tolist()))}
    length = np.linalg.norm(question)
    cosines = {t: mean @ question / np.linalg.norm(mean) / length for t, mean in means.items()}
    best = max(cosines, key=cosines.get)
    return best if cosines[best] >= least else None
