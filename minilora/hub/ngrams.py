"""Texts as hashed character n-grams: what the router counts, and the file that a version keeps of
its examples.

    "Fuel?"  ->  " fu" "fue" "uel" "el " " fue" "fuel" "uel " " fuel" "fuel "  ->  CRC-32 modulo 2¹⁶

Hashing needs no list of words (Weinberger et al. 2009, arXiv 0902.2206). Two n-grams that share a
place add up; a text of a hundred letters has three hundred of the 65,536 places.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load
from torch import Tensor

from ..formats.peft_files import packed

SIZES = (3, 4, 5)  # characters of an n-gram
PLACES = 1 << 16
LONGEST = 4000  # characters of a text that are read
MOST = 400  # texts that a version keeps


@dataclass(frozen=True)
class Counts:
    """Texts as hashed n-gram counts, one after the other: text i has ``places[starts[i]:starts[i +
    1]]``.
    """

    places: Tensor
    counts: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.starts) - 1

    def pick(self, rows: Sequence[int]) -> Counts:
        """Some of the texts."""
        spans = [(int(self.starts[row]), int(self.starts[row + 1])) for row in rows]
        parts = [torch.arange(start, end) for start, end in spans]
        kept = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
        sizes = torch.tensor([0, *(end - start for start, end in spans)])
        return Counts(self.places[kept], self.counts[kept], sizes.cumsum(0))


def ngrams(text: str) -> Counter[str]:
    """The n-grams of a text in lower case, every run of other signs a space, with a space at both
    ends.

    >>> sorted(ngrams("Fuel?"))[:3]
    [' fu', ' fue', ' fuel']
    """
    words = re.findall(r"[^\W_]+", text[:LONGEST].lower())
    plain = f" {' '.join(words)} "
    return Counter(plain[i : i + n] for n in SIZES for i in range(len(plain) - n + 1))


def place(ngram: str) -> int:
    """Where an n-gram is counted: CRC-32 of its UTF-8, the same on every machine."""
    return zlib.crc32(ngram.encode("utf-8", "surrogatepass")) % PLACES


def count_texts(texts: Iterable[str]) -> Counts:
    """Texts as hashed counts."""
    places, counts, starts = [], [], [0]
    for text in texts:
        found: Counter[int] = Counter()
        for gram, count in ngrams(text).items():
            found[place(gram)] += count
        places += sorted(found)
        counts += [min(found[key], 32767) for key in sorted(found)]
        starts.append(len(places))
    return Counts(
        torch.tensor(places, dtype=torch.long), torch.tensor(counts), torch.tensor(starts)
    )


def save_counts(texts: Sequence[str]) -> bytes:
    """Hashed counts as a file, 3 bytes an n-gram; of more than 400 texts, evenly spaced ones.

    No text stands in it, though short words could be guessed back.
    """
    each = count_texts(texts[:: -(-len(texts) // MOST)] if texts else ())
    parts = {
        "places": (each.places - PLACES // 2).short(),
        "counts": each.counts.clamp(max=255).byte(),
        "starts": each.starts.int(),
    }
    return packed(parts, {"places": str(PLACES), "sizes": "-".join(map(str, SIZES))})


def load_counts(content: bytes) -> Counts:
    """Read ``save_counts``'s file. Raises ``ValueError`` when its numbers do not fit each other."""
    try:
        parts = {name: part.long() for name, part in load(content).items()}
        places, counts, starts = (parts[name].view(-1) for name in ("places", "counts", "starts"))
        places, steps = places + PLACES // 2, starts.diff()
        sound = starts[0] == 0 and starts[-1] == len(places) == len(counts) and (steps >= 0).all()
        sound = sound and ((places >= 0) & (places < PLACES) & (counts > 0)).all()
    except Exception as error:  # safetensors raises its own class
        raise ValueError(f"the router's examples are damaged: {error}") from error
    if not sound:
        raise ValueError(
            "the router's examples are damaged: counts and places do not fit each other"
        )
    return Counts(places, counts, starts)
