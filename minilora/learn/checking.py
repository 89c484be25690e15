"""The parts of a checker: ``Wrong``, ``cases``, ``close``, ``forbid``.

A checker tries an answer on random cases and compares it with an independent oracle:

    @cases(rows=integers(1, 5), columns=integers(1, 5), seed=integers(0, 999))
    def check_transpose(answer, rows, columns, seed):
        x = np.random.default_rng(seed).normal(size=(rows, columns))
        close(answer(x), np.swapaxes(x, 0, 1), what="xᵀ", case=f"x {x.shape}")

``cases`` draws with hypothesis, derandomized, so that a class gets the same cases, and shrinks to
the smallest failing one. A transpose or a factor cannot be seen in a matrix of one number, so a
checker may name a case that is tried before all others: ``first={"rows": 3, "columns": 5, …}``.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

EXAMPLES = 50
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
TINY = float(np.finfo(np.float64).tiny)


class Wrong(Exception):
    """An answer is wrong; the message gives the place, the error and a right answer's value.

    ``has_numbers``: whether the message has the answer's own numbers, which tell one mistake from
    another.

    >>> try:
    ...     close(3.0, 4.0, what="y")
    ... except Wrong as error:
    ...     print(error)
    y: the largest error is 1, where yours is 3 and a right answer has 4
    """

    def __init__(self, message: str = "", has_numbers: bool = False):
        super().__init__(message)
        self.has_numbers = has_numbers


def cases(
    examples: int = EXAMPLES, /, *, first: dict[str, Any] | None = None, **strategies: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a body that takes drawn values by keyword; a call runs it on ``examples`` cases.

    Positional arguments of the call come first: ``check_x(answer)``. The ``Wrong`` of the case
    ``first``, if there is one and it fails, is raised; else that of the smallest failing case.
    Raises ``ValueError`` when ``first`` and the strategies have different names.

    >>> from hypothesis.strategies import integers
    >>> @cases(n=integers(0, 100))
    ... def check_double(answer, n):
    ...     close(answer(n), n + n, what="2n", case=f"n = {n}")
    >>> check_double(lambda n: 2 * n)
    """

    if first is not None and set(first) != set(strategies):
        raise ValueError(f"first must name {', '.join(strategies)}, got {', '.join(first)}")

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(*args: Any) -> None:
            if first is not None:
                body(*args, **first)
            from hypothesis import HealthCheck, Phase, given, settings

            @settings(
                max_examples=examples,
                derandomize=True,
                database=None,
                deadline=None,
                report_multiple_bugs=False,
                print_blob=False,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            @given(**strategies)
            def each(**drawn: Any) -> None:
                body(*args, **drawn)

            each()

        return run

    return decorate


def close(
    result: Any,
    expected: Any,
    what: str = "the result",
    case: str = "",
    tolerance: float | None = None,
) -> None:
    """Raise ``Wrong`` unless ``result`` equals ``expected`` within ``tolerance`` × max |expected|.

    Arrays, tensors and numbers; integers and booleans must be equal. The default tolerance follows
    the coarser dtype of the two. The message gives the shapes, the largest error and its place, and
    a guess (a transpose, a factor) when one fits.

    >>> close(np.ones(3) + 1e-12, np.ones(3))
    >>> close(np.ones((2, 3)), np.ones((3, 2)), what="xᵀ")
    Traceback (most recent call last):
    minilora.learn.checking.Wrong: xᵀ has shape (2, 3), a right answer has (3, 2)...
    """
    name, kind = f"{what} for {case}" if case else what, type(result).__name__
    if result is None:
        raise Wrong(f"{name} is None: does the function return something?")
    try:
        mine, right = as_array(result), as_array(expected)
    except (TypeError, ValueError) as error:
        shape = np.shape(expected)
        raise Wrong(f"{name} must be an array of shape {shape}, got {kind}") from error
    if mine.dtype == object or mine.dtype.kind in "US":
        raise Wrong(f"{name} must be numbers of shape {right.shape}, got {kind}")
    if mine.shape != right.shape:
        hint = ": it has the shape of the transpose" if mine.shape == right.T.shape else ""
        raise Wrong(f"{name} has shape {mine.shape}, a right answer has {right.shape}{hint}")
    if right.size == 0:
        return
    limit = tolerance_of(result, expected) if tolerance is None else tolerance
    wide, true = mine.astype(np.float64), right.astype(np.float64)
    if not np.isfinite(wide).all() and np.isfinite(true).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(wide))[0])
        raise Wrong(f"{name} (shape {mine.shape}) is not finite: {wide[where]} at {where}")
    errors = np.array(np.abs(wide - true))  # of two numbers, NumPy makes a number and not an array
    errors[wide == true] = 0  # infinities of one sign
    worst = np.unravel_index(int(errors.argmax()), errors.shape)
    if errors[worst] > limit * max(float(np.abs(true).max()), TINY):
        index = tuple(int(i) for i in worst)
        place, shape = (f" at {index}", f" (shape {right.shape})") if index else ("", "")
        raise Wrong(
            f"{name}{shape}: the largest error is {errors[worst]:.3g}{place}, where yours is "
            f"{wide[worst]:.6g} and a right answer has {true[worst]:.6g}{guess(wide, true)}",
            has_numbers=True,
        )


def as_array(value: Any) -> np.ndarray:
    """A NumPy array of a tensor (bfloat16 too), an array, a number or a list."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def tolerance_of(*values: Any) -> float:
    """The coarsest tolerance of the values' dtypes; zero when all are whole numbers or booleans."""
    dtypes = [value.dtype if hasattr(value, "dtype") else as_array(value).dtype for value in values]
    return max(TOLERANCES.get(str(dtype).rpartition(".")[2], 0.0) for dtype in dtypes)


def guess(wrong: np.ndarray, right: np.ndarray) -> str:
    """How a wrong answer relates to the right one: zero, its transpose, a multiple, or no guess.

    For single numbers only plain multiples are named, as ``is_plain`` has them.

    >>> guess(np.array([2.0, 4.0]), np.array([1.0, 2.0]))
    '. It is 2.00 times the right answer'
    """
    scale = float(np.abs(right).max())

    def near(other: np.ndarray, factor: float = 1.0) -> bool:
        return np.allclose(wrong, other, rtol=0, atol=1e-4 * abs(factor) * scale)

    if not wrong.any():
        return ". It is zero everywhere"
    if right.ndim == 2 and right.shape[0] == right.shape[1] and near(right.T):
        return ". It is the transpose of the right answer"
    # the multiple of ``right`` that is nearest to ``wrong`` in the mean square
    factor = float((wrong * right).sum() / max(float((right * right).sum()), TINY))
    if not scale or abs(factor) <= 1e-6 or not near(factor * right, factor):
        return ""
    if abs(factor - 1) < 0.005:
        return ""
    if wrong.size == 1 and not is_plain(factor):
        return ""  # any number is some multiple of another
    if factor == -1:
        return ". It has the wrong sign everywhere"
    times = f"{factor:.2f}" if abs(factor) >= 0.1 else f"{factor:.2g}"
    return f". It is {times} times the right answer"


def is_plain(factor: float) -> bool:
    """Whether a factor may be a hint: whole and at most 64, a power of ten, or one of these below.

    Any large number is close to a whole one, so its size alone says nothing.

    >>> [is_plain(factor) for factor in (3.0, 1 / 8, 0.001, 1.5, 137.0, 1763.57)]
    [True, True, True, False, False, False]
    """
    times = max(abs(factor), 1 / abs(factor))
    whole = round(times)
    small_or_ten = whole <= 64 or str(whole).rstrip("0") == "1"
    return small_or_ten and abs(times - whole) <= 1e-4 * times


LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def forbid(answer: Callable[..., Any], *names: str, loops: bool = False) -> None:
    """Raise ``Wrong`` where an answer uses a name, or a loop, that its exercise rules out.

    An exercise whose specification is a slow loop needs such a rule, or the loop is its answer. The
    source is read: a function without one (of another language, or typed into a prompt) is let
    through, and so is a loop in a helper of the learner's own.

    >>> forbid(is_plain, "svd")
    >>> forbid(close, "argmax")
    Traceback (most recent call last):
    minilora.learn.checking.Wrong: line ... of your function, ...: the rule here is no argmax
    """
    try:
        source = textwrap.dedent(inspect.getsource(answer))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return
    for node in ast.walk(tree):
        name = getattr(node, "attr", getattr(node, "id", None))
        looping = loops and isinstance(node, LOOPS)
        if looping or name in names:
            line = getattr(node, "lineno", 1)
            text = source.splitlines()[line - 1].strip()
            rule = "no loop" if looping else f"no {name}"
            raise Wrong(f"line {line} of your function, `{text}`: the rule here is {rule}")
