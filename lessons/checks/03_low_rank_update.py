"""Checker of lesson 03. The oracle is autograd on the plain forward, no hand-written gradient."""

import torch
from hypothesis.strategies import floats, integers, lists

from minilora.learn import Wrong, cases, close


@cases(
    first={"front": [2, 3], "size_in": 5, "size_out": 7, "r": 3, "s": 0.7, "seed": 0},
    front=lists(integers(1, 4), min_size=1, max_size=3),
    size_in=integers(1, 7),
    size_out=integers(1, 7),
    r=integers(1, 5),
    s=floats(0.25, 8),
    seed=integers(0, 999),
)
def check_lora_gradients(answer, front, size_in, size_out, r, s, seed):
    """Random shapes with one to three axes in front, s ≠ 1, and a B that is not zero."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, g, W0 = random(*front, size_in), random(*front, size_out), random(size_out, size_in)
    A, B = random(r, size_in).requires_grad_(), random(size_out, r).requires_grad_()
    y = x @ W0.T + s * (x @ A.T) @ B.T
    (y * g).sum().backward()  # so that ∂L/∂y is g
    shapes = {"x": x, "g": g, "A": A, "B": B}
    case = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shapes.items())
    case += f", s = {s:.3g}"
    pair = answer(g.clone(), x.clone(), A.detach().clone(), B.detach().clone(), s)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise Wrong(f"{case}: expected the pair (dA, dB), got {type(pair).__name__}")
    close(pair[0], A.grad, what="∂A", case=case)
    close(pair[1], B.grad, what="∂B", case=case)


def flat(g, x):
    """Tokens in front."""
    return g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])


def transposed(g, x, A, B, s):
    """Both the wrong way round."""
    g, x = flat(g, x)
    return x.T @ (s * g @ B), s * (x @ A.T).T @ g


def unscaled(g, x, A, B, s):
    """No s at all."""
    g, x = flat(g, x)
    return (g @ B).T @ x, g.T @ (x @ A.T)


def unscaled_in_A(g, x, A, B, s):
    """s is only in ∂B: invisible while B is zero."""
    g, x = flat(g, x)
    return (g @ B).T @ x, s * g.T @ (x @ A.T)


def averaged(g, x, A, B, s):
    """Divides by the tokens: g has done that already, if the loss is a mean."""
    g, x = flat(g, x)
    return (s * g @ B).T @ x / len(x), s * g.T @ (x @ A.T) / len(x)


def scaled_twice(g, x, A, B, s):
    """s in h and again in ∂B."""
    g, x = flat(g, x)
    return (s * g @ B).T @ x, s * g.T @ (s * x @ A.T)


def first_row_only(g, x, A, B, s):
    """Takes the first element of each axis in front, as if x were (tokens, in)."""
    while x.dim() > 2:
        g, x = g[0], x[0]
    g, x = flat(g, x)
    return (s * g @ B).T @ x, s * g.T @ (x @ A.T)


def swapped(g, x, A, B, s):
    """dB first."""
    g, x = flat(g, x)
    return s * g.T @ (x @ A.T), (s * g @ B).T @ x


WRONG = {
    "lora_gradients": {
        "transposed": transposed,
        "unscaled": unscaled,
        "unscaled in A": unscaled_in_A,
        "averaged": averaged,
        "scaled twice": scaled_twice,
        "one row of the batch": first_row_only,
        "swapped": swapped,
    }
}
