"""Checkers of lesson 20. Oracles: pairs that must be equal or differ, and a loop over floats."""

import hashlib
import math

import numpy as np
from hypothesis import strategies as st

from minilora.learn import Wrong, cases

seeds = st.integers(0, 9999)


def drawn(seed, count):
    """Named random arrays of odd shapes, float32."""
    dice = np.random.default_rng(seed)
    shapes = [(int(dice.integers(2, 5)), int(dice.integers(2, 5))) for _ in range(count)]
    return {
        f"layer.{i}.lora_{'AB'[i % 2]}": dice.normal(size=shape).astype("float32")
        for i, shape in enumerate(shapes)
    }


@cases(first={"seed": 0, "count": 3}, seed=seeds, count=st.integers(2, 4))
def check_content_identity(answer, seed, count):
    """Equal content, equal identity; any other content, another."""
    tensors = drawn(seed, count)
    shapes = [array.shape for array in tensors.values()]
    identity = answer(dict(tensors))
    if not isinstance(identity, str) or len(identity) != 64:
        raise Wrong(f"got {identity!r}; a right answer has 64 hexadecimal digits, as a string")
    turned = dict(reversed(tensors.items()))
    columns = {name: np.asfortranarray(array) for name, array in tensors.items()}
    for what, equal in (("keys in another order", turned), ("arrays by columns", columns)):
        if answer(equal) != identity:
            raise Wrong(f"shapes {shapes}: the same tensors, {what}, get another identity")
    name = list(tensors)[seed % count]
    array = tensors[name]
    flipped = array.copy()
    flipped.flat[-1] = np.nextafter(flipped.flat[-1], np.float32(9))
    renamed = {("x" + key if key == name else key): value for key, value in tensors.items()}
    others = {
        "one value moved by one bit": tensors | {name: flipped},
        "one array transposed": tensors | {name: array.T.copy()},
        "one array flattened": tensors | {name: array.ravel()},
        "one name changed": renamed,
        "one array left out": {key: value for key, value in tensors.items() if key != name},
        "values of two names exchanged": dict(
            zip(tensors, [*tensors.values()][1:] + [*tensors.values()][:1], strict=True)
        ),
    }
    for what, other in others.items():
        if answer(other) == identity:
            raise Wrong(f"shapes {shapes}, {what}: the identity stays the same; it must not")


@cases(
    first={"seed": 0, "topics": 3, "d": 5, "part": 0.5},
    seed=seeds,
    topics=st.integers(2, 4),
    d=st.integers(2, 5),
    part=st.floats(0.2, 0.8),
)
def check_route_by_centroid(answer, seed, topics, d, part):
    """Against a loop over plain floats, with a threshold between the best two cosines or above."""
    dice = np.random.default_rng(seed)
    labels = np.repeat(np.arange(topics), 3)
    x = dice.normal(size=(3 * topics, d)) * dice.uniform(0.1, 30, size=(3 * topics, 1))
    question = dice.normal(size=d) * dice.uniform(0.1, 30)
    cosines = []
    for topic in range(topics):
        mean = [0.0] * d
        for row in x[labels == topic]:
            length = math.sqrt(sum(float(v) ** 2 for v in row))
            mean = [m + float(v) / length / 3 for m, v in zip(mean, row, strict=True)]
        dot = sum(m * float(q) for m, q in zip(mean, question, strict=True))
        size = math.sqrt(sum(m * m for m in mean)) * math.sqrt(sum(float(q) ** 2 for q in question))
        cosines.append(dot / size)
    low, high = sorted(cosines)[-2:]
    right = cosines.index(high)
    case = f"{topics} topics of 3 examples, d = {d}, cosines {[round(c, 3) for c in cosines]}"
    for least, expected in ((low + part * (high - low), right), (high + 0.01, None)):
        got = answer(x.copy(), labels.copy(), question.copy(), least)
        if got != expected or (expected is not None and got is None):
            raise Wrong(f"{case}, least {least:.3f}: got {got}, a right answer is {expected}")


def identity_of(parts):
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def in_the_dicts_order(tensors):
    """Keys as they come."""
    return identity_of(f"{n} {a.shape}\n".encode() + a.tobytes() for n, a in tensors.items())


def without_names(tensors):
    """Only the values."""
    return identity_of(
        f"{tensors[n].shape}".encode() + tensors[n].tobytes() for n in sorted(tensors)
    )


def without_shapes(tensors):
    """Names and bytes only."""
    return identity_of(n.encode() + tensors[n].tobytes() for n in sorted(tensors))


def of_printed_values(tensors):
    """Rounded by printing."""
    return identity_of(f"{n} {tensors[n].shape} {tensors[n]}".encode() for n in sorted(tensors))


def of_memory(tensors):
    """Bytes as they lie in memory, so that arrays by columns differ."""
    return identity_of(
        f"{n} {tensors[n].shape}\n".encode() + tensors[n].tobytes("A") for n in sorted(tensors)
    )


def python_hash(tensors):
    """A hash of this process alone, and a short one."""
    return str(hash(tuple(sorted(tensors))))


def long_rows_count_more(x, labels, question, least):
    """No division by the rows' lengths."""
    means = [x[labels == t].mean(0) for t in sorted(set(labels.tolist()))]
    return nearest(means, question, least)


def by_dot_product(x, labels, question, least):
    """Dot product instead of cosine."""
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    dots = [unit[labels == t].mean(0) @ question for t in sorted(set(labels.tolist()))]
    best = int(np.argmax(dots))
    return best if dots[best] >= least else None


def never_abstains(x, labels, question, least):
    """Always an answer."""
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    means = [unit[labels == t].mean(0) for t in sorted(set(labels.tolist()))]
    return nearest(means, question, -2.0)


def nearest_example(x, labels, question, least):
    """The nearest example's topic."""
    cosines = x @ question / np.linalg.norm(x, axis=1) / np.linalg.norm(question)
    best = int(np.argmax(cosines))
    return int(labels[best]) if cosines[best] >= least else None


def nearest(means, question, least):
    """The mean with the largest cosine, or None."""
    size = np.linalg.norm(question)
    cosines = [mean @ question / np.linalg.norm(mean) / size for mean in means]
    best = int(np.argmax(cosines))
    return best if cosines[best] >= least else None


WRONG = {
    "content_identity": {
        "the dict's order": in_the_dicts_order,
        "without names": without_names,
        "without shapes": without_shapes,
        "of printed values": of_printed_values,
        "of memory order": of_memory,
        "Python's hash": python_hash,
    },
    "route_by_centroid": {
        "long rows count more": long_rows_count_more,
        "dot product": by_dot_product,
        "never abstains": never_abstains,
        "nearest example": nearest_example,
    },
}
