"""Checkers of lesson 13. Sums are judged against float64; routes by a plain double loop."""

import torch
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close


@cases(
    first={"rows": 7, "columns": 5, "r": 3, "alpha": 2.0, "dtype": torch.float32, "seed": 0},
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    r=st.integers(1, 5),
    alpha=st.sampled_from([0.5, 2.0, 3.0, 16.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def check_merge_once(answer, rows, columns, r, alpha, dtype, seed):
    """Shape, dtype, W untouched, and one rounding only."""
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=random).to(dtype)
    A, B = torch.randn(r, columns, generator=random), torch.randn(rows, r, generator=random)
    case = f"W {(rows, columns)} {dtype}, A {(r, columns)}, B {(rows, r)}, alpha = {alpha}"
    before = W.clone()
    exact = W.double() + alpha / r * B.double() @ A.double()
    terms = alpha / r * B.double().abs() @ A.double().abs() + W.double().abs()
    merged = answer(W, A, B, alpha)
    if not torch.equal(W, before):
        change = (W - before).abs().max()
        raise Wrong(f"W itself was changed for {case}, by up to {change:.3g}; return a new tensor")
    close(merged, exact.to(dtype), what="W + ΔW", case=case, tolerance=0.02)
    if merged.dtype != dtype:
        raise Wrong(f"the merged weight is {merged.dtype} for {case}; a right answer has W's dtype")
    in_float32 = terms * torch.finfo(torch.float32).eps * (r + 3)  # r products, s, and the sum
    at_the_end = exact.abs() * torch.finfo(dtype).eps / 2  # half a unit in the last place
    error = (merged.double() - exact).abs() / (at_the_end + in_float32)
    if error.max() > 1.01:
        index = tuple(int(i) for i in torch.nonzero(error == error.max())[0])
        raise Wrong(
            f"for {case} the entry {index} is {merged[index].item():.6g}, exactly "
            f"{exact[index].item():.6g}: that is off by {error.max():.2f} times what one rounding "
            "at the end can lose; something was rounded earlier"
        )


@cases(
    count=st.integers(1, 5),
    tokens=st.integers(1, 5),
    size_in=st.integers(1, 5),
    size_out=st.integers(1, 5),
    max_bits=st.sampled_from([2.0, 4.5, 16.0, 32.0]),
    seed=st.integers(0, 999),
)
def check_choose_route(answer, count, tokens, size_in, size_out, max_bits, seed):
    """Against sums written out entry by entry."""
    random = torch.Generator().manual_seed(seed)
    true = torch.randn(size_out, size_in, generator=random)
    x = torch.randn(tokens, size_in, generator=random)
    wanted = x @ true.T
    routes = {}
    for index in range(count):
        noise = torch.randn(size_out, size_in, generator=random) * torch.rand((), generator=random)
        bits = [4.127, 4.5, 16.0, 32.0][int(torch.randint(4, (), generator=random))]
        routes[f"route {index}"] = (true + noise, bits)
    errors = {}
    for name, (weight, bits) in routes.items():
        outputs = [[float(row @ line) for line in weight] for row in x]
        squares = sum(
            (outputs[t][o] - float(wanted[t, o])) ** 2
            for t in range(tokens)
            for o in range(size_out)
        )
        if bits <= max_bits:
            errors[name] = squares**0.5
    right = min(errors, key=lambda name: errors[name]) if errors else None
    chosen = answer(dict(routes), x.clone(), wanted.clone(), max_bits)
    if chosen != right:
        verdicts = {name: f"too large: {bits} bits" for name, (_, bits) in routes.items()}
        verdicts |= {name: f"{error:.3f}" for name, error in errors.items()}
        case = f"x {(tokens, size_in)}, weights {(size_out, size_in)}, max_bits = {max_bits}"
        raise Wrong(
            f"for {case} the answer is {chosen!r}, a right one {right!r}; the errors are {verdicts}"
        )


def errors_of(routes, x, wanted, max_bits):
    """Errors of what fits."""
    return {
        name: (x @ weight.T - wanted).norm().item()
        for name, (weight, bits) in routes.items()
        if bits <= max_bits
    }


def merge_in_place(W, A, B, alpha):
    """W is changed."""
    W += (alpha / A.shape[0] * B @ A).to(W.dtype)
    return W


def ignores_the_bits(routes, x, wanted, max_bits):
    """The nearest, however large."""
    return min(routes, key=lambda name: (x @ routes[name][0].T - wanted).norm().item())


def strictly_smaller(routes, x, wanted, max_bits):
    """``<`` for ``<=``."""
    smaller = {name: route for name, route in routes.items() if route[1] < max_bits}
    errors = errors_of(smaller, x, wanted, max_bits)
    return min(errors, key=lambda name: errors[name]) if errors else None


def farthest(routes, x, wanted, max_bits):
    """The largest error."""
    errors = errors_of(routes, x, wanted, max_bits)
    return max(errors, key=lambda name: errors[name]) if errors else None


def most_bits(routes, x, wanted, max_bits):
    """Trusts the number of bits."""
    fitting = {name: bits for name, (_, bits) in routes.items() if bits <= max_bits}
    return max(fitting, key=lambda name: fitting[name]) if fitting else None


def signed_mean(routes, x, wanted, max_bits):
    """Errors of both signs cancel."""
    errors = {
        name: (x @ weight.T - wanted).mean().abs().item()
        for name, (weight, bits) in routes.items()
        if bits <= max_bits
    }
    return min(errors, key=lambda name: errors[name]) if errors else None


WRONG = {
    "merge_once": {
        "unscaled": lambda W, A, B, alpha: (W.float() + B @ A).to(W.dtype),
        "alpha without r": lambda W, A, B, alpha: (W.float() + alpha * B @ A).to(W.dtype),
        "ΔW rounded first": lambda W, A, B, alpha: W + (alpha / A.shape[0] * B @ A).to(W.dtype),
        "factors rounded first": lambda W, A, B, alpha: (
            W + (alpha / A.shape[0]) * B.to(W.dtype) @ A.to(W.dtype)
        ),
        "always float32": lambda W, A, B, alpha: W.float() + alpha / A.shape[0] * B @ A,
        "subtracted": lambda W, A, B, alpha: (W.float() - alpha / A.shape[0] * B @ A).to(W.dtype),
        "in place": merge_in_place,
    },
    "choose_route": {
        "ignores the bits": ignores_the_bits,
        "strictly smaller": strictly_smaller,
        "the farthest": farthest,
        "the most bits": most_bits,
        "errors cancel": signed_mean,
    },
}
