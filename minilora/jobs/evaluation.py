"""What an adapter is worth: the task's score, what was forgotten, and what must stay right.

    exact_match      held-out examples of the task answered to the letter     higher is better
    regression       a set of questions whose answers must stay right         higher is better
    bits_per_byte    of plain prose                                           lower is better
    forgetting       bits_per_byte with the adapter minus the base's

Each has its ``_base``, of the base alone. Which single answers were right stands beside the shares,
so that two adapters can be compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..training.evaluation import answers, bits_per_byte
from ..training.examples import Document, Learnt, asked_and_expected

AT_ONCE = 16  # examples answered between two looks at whether the job is still wanted
SHARE = {"task": "exact_match", "regression": "regression"}


def evaluate_adapter(
    model: Any,
    attach: Callable[[], object],
    sets: Mapping[str, Sequence[Learnt]],
    *,
    prose: bool = True,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The scores of ``model`` alone, then after ``attach()``: shares, bits, and the answers.

    ``sets``: the examples of ``task`` and ``regression``; documents ask nothing and are left out.
    ``check`` is called between two batches, and may raise.

    >>> import minilora
    >>> model, polite = minilora.load_base(), minilora.data.polite_log(1, 2)
    >>> attach = lambda: minilora.inject(model)  # an adapter that is not trained changes nothing
    >>> scores = evaluate_adapter(model, attach, {"task": polite.valid}, prose=False)
    >>> scores["exact_match_base"], scores["exact_match"], scores["right"]["task"]
    (1.0, 1.0, [True, True])
    """
    asked = {
        name: [example for example in examples if not isinstance(example, Document)]
        for name, examples in sets.items()
    }
    base = judged(model, asked, prose, check)
    attach()
    scores = judged(model, asked, prose, check)
    scores |= {f"{name}_base": value for name, value in base.items()}
    if prose:
        scores["forgetting"] = scores["bits_per_byte"] - base["bits_per_byte"]
    return scores


def judged(
    model: Any, asked: Mapping[str, Sequence[Learnt]], prose: bool, check: Callable[[], None]
) -> dict[str, Any]:
    """The scores of a model as it is."""
    scores: dict[str, Any] = {"right": {}, "answers": {}}
    for name, examples in asked.items():
        if not examples:
            continue
        given: list[str] = []
        for start in range(0, len(examples), AT_ONCE):
            check()
            given += answers(model, examples[start : start + AT_ONCE], AT_ONCE)
        expected = [asked_and_expected(example)[1] for example in examples]
        right = [a.strip() == e.strip() for a, e in zip(given, expected, strict=True)]
        scores["right"][name], scores["answers"][name] = right, given
        scores[SHARE.get(name, name)] = sum(right) / len(right)
    if prose:
        check()
        scores["bits_per_byte"] = bits_per_byte(model)
    return scores
