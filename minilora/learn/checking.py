"""What checkers are made of: ``Wrong``, ``cases``, ``close``; and ``check``, which a lesson calls on the learner's function.

A checker tries an answer on random cases and compares it with an independent oracle:

    @cases(rows=integers(1, 5), columns=integers(1, 5), seed=integers(0, 999))
    def check_transpose(answer, rows, columns, seed):
        x = np.random.default_rng(seed).normal(size=(rows, columns))
        close(answer(x), np.swapaxes(x, 0, 1), what="xᵀ", case=f"x {x.shape}")

``cases`` draws with hypothesis, derandomized, so that a class gets the same cases, and shrinks to the smallest failing one.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = 50
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


class Wrong(Exception):
    """An answer is wrong; the message says where, by how much, and what a right answer has."""


def cases(
    examples: int = EXAMPLES, /, **strategies: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a body that takes drawn values by keyword; calling it runs the body on ``examples`` drawn cases.

    Positional arguments of the call come first: ``check_x(answer)``. The ``Wrong`` of the smallest failing case is raised.

    >>> from hypothesis.strategies import integers
    >>> @cases(n=integers(0, 100))
    ... def check_double(answer, n):
    ...     close(answer(n), n + n, what="2n", case=f"n = {n}")
    >>> check_double(lambda n: 2 * n)
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(*args: Any) -> None:
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
    found: Any,
    expected: Any,
    what: str = "the result",
    case: str = "",
    tolerance: float | None = None,
) -> None:
    """Raise ``Wrong`` unless ``found`` equals ``expected`` within ``tolerance`` × the largest |expected|.

    Arrays, tensors and numbers; integers and booleans must be equal. The default tolerance follows the coarser dtype of the
    two. The message gives the shapes, the largest error and where, and a guess (a transpose, a factor) when one fits.
    """
    at = f" for {case}" if case else ""
    if found is None:
        raise Wrong(f"{what}{at} is None: does the function return something?")
    try:
        mine, right = as_array(found), as_array(expected)
    except (TypeError, ValueError) as error:
        raise Wrong(
            f"{what}{at} must be an array of shape {np.shape(expected)}, got {type(found).__name__}"
        ) from error
    if mine.dtype == object or mine.dtype.kind in "US":
        raise Wrong(
            f"{what}{at} must be numbers of shape {right.shape}, got {type(found).__name__}"
        )
    if mine.shape != right.shape:
        hint = ": it has the shape of the transpose" if mine.shape == right.T.shape else ""
        raise Wrong(f"{what}{at} has shape {mine.shape}, a right answer has {right.shape}{hint}")
    if right.size == 0:
        return
    limit = tolerance_of(found, expected) if tolerance is None else tolerance
    wide, true = mine.astype(np.float64), right.astype(np.float64)
    if not np.isfinite(wide).all() and np.isfinite(true).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(wide))[0])
        raise Wrong(f"{what}{at} (shape {mine.shape}) is not finite: {wide[where]} at {where}")
    errors = np.array(np.abs(wide - true))  # of two numbers, NumPy makes a number and not an array
    errors[wide == true] = 0  # infinities of one sign
    worst = np.unravel_index(int(errors.argmax()), errors.shape)
    if errors[worst] > limit * max(float(np.abs(true).max()), np.finfo(np.float64).tiny):
        index = tuple(int(i) for i in worst)
        place, shape = (f" at {index}", f" (shape {right.shape})") if index else ("", "")
        raise Wrong(
            f"{what}{at}{shape}: the largest error is {errors[worst]:.3g}{place}, where yours is "
            f"{wide[worst]:.6g} and a right answer has {true[worst]:.6g}{guess(wide, true)}"
        )


def as_array(value: Any) -> np.ndarray:
    """A NumPy array of a tensor (bfloat16 too), an array, a number or a list."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def tolerance_of(*values: Any) -> float:
    """The coarsest tolerance among the values' dtypes; zero when all are whole numbers or booleans."""
    names = [
        str(value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype).rpartition(".")[2]
        for value in values
    ]
    return max((TOLERANCES.get(name, 0.0) for name in names), default=0.0)


def guess(found: np.ndarray, right: np.ndarray) -> str:
    """What a wrong answer may be: all zeros, the transpose, or a multiple of the right answer; else nothing.

    >>> guess(np.array([2.0, 4.0]), np.array([1.0, 2.0]))
    '. It is 2.00 times the right answer'
    """
    scale = float(np.abs(right).max())
    if not found.any():
        return ". It is zero everywhere"
    if found.size == 1:
        return ""
    if (
        right.ndim == 2
        and right.shape[0] == right.shape[1]
        and np.allclose(found, right.T, rtol=0, atol=1e-4 * scale)
    ):
        return ". It is the transpose of the right answer"
    factor = float(
        (found * right).sum() / max(float((right * right).sum()), np.finfo(np.float64).tiny)
    )
    if (
        scale
        and abs(factor) > 1e-6
        and np.allclose(found, factor * right, rtol=0, atol=1e-4 * abs(factor) * scale)
    ):
        return (
            f". It is {factor:.2f} times the right answer"
            if factor != -1
            else ". It has the wrong sign everywhere"
        )
    return ""


def check(function: Callable[..., Any]) -> None:
    """Check the learner's function against its exercise's checker and print the verdict; never raises."""
    from .course import find_exercise, load_checks

    name = function.__name__
    code = getattr(function, "__code__", None)
    lesson = find_exercise(name) or (
        find_exercise(name, Path(code.co_filename).parent) if code else None
    )  # a lesson of your own
    if lesson is None:
        print(f"{name}: no exercise of the course has this name")
        return
    status, message = judge_answer(getattr(load_checks(lesson), f"check_{name}"), function)
    print(f"{name}: {status}" + (f". {message}" if message else ""))


def judge_answer(checker: Callable[[Any], None], answer: Callable[..., Any]) -> tuple[str, str]:
    """("passed" | "to do" | "wrong" | "error", message): what a checker says of an answer."""
    try:
        checker(answer)
    except NotImplementedError:
        return "to do", ""
    except Wrong as error:
        return "wrong", str(error)
    except Exception as error:
        return "error", describe_error(
            error, Path(answer.__code__.co_filename) if hasattr(answer, "__code__") else None
        )
    return "passed", ""


def describe_error(error: BaseException, file: Path | None) -> str:
    """An exception in a learner's terms: its kind and message, and the line of their file that it came from."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if file is not None and Path(frame.filename) == file
    ]
    if frames:
        return f"your line {frames[-1].lineno}, `{frames[-1].line}`, raised {said}"
    return f"your function raised {said}"
