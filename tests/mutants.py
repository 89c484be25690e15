"""Mutation testing: break the core modules one operator at a time, and see whether the tests notice.

    python -m tests.mutants nf4 lora             some modules
    python -m tests.mutants --sample 20          twenty mutants of each
    make mutants                                 all of them, 1,098: an hour or two on a laptop

The mutations are cosmic-ray's: + becomes -, < becomes <=, a number grows by one, a condition is negated, a loop does not run,
a decorator is missing. Its own runner starts Python and imports torch, PEFT and bitsandbytes for every mutant; here that
happens once, and every mutant runs in a fork: it imports the mutated source instead of the module, then the module's tests
with the ``dev`` profile, until the first one fails. A mutant that no test fails has survived: either nobody can tell it from
the original (docs/mutants.md says why), or a test is missing.

Left out: annotations (nothing evaluates them), mutations of one operator into every other one (one of them is enough, they are
noticed together), ``assert`` lines and the ``strict=True`` of a ``zip``, which asserts too. A module's progress is kept in a
JSON file, so that a run that was stopped goes on.
"""

import argparse
import ast
import gc
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = {
    "level0": ["level0"],
    "lora/config": ["lora/config"],
    "nf4/tensor": ["nf4/tensor", "formats/bitsandbytes_4bit"],
    "lora/layer": ["lora/layer", "lora/injection", "lora/merging", "invariants"],
    "nf4/linear": ["nf4/linear", "lora/merging", "invariants"],
    "lora/injection": ["lora/injection", "invariants", "lora/selection"],
    "lora/merging": ["lora/merging", "lora/requantization"],
    "formats/save_and_load": ["formats/save_and_load", "formats/base_fingerprint"],
    "ledger/measurement": ["ledger/measurement", "ledger/tensor_tracker"],
    "ledger/tensor_tracker": ["ledger/tensor_tracker"],
}
OPERATORS = re.compile(
    "ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Mul_Add|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|RShift_LShift|LShift_RShift"
    "|BitOr_BitAnd|BitAnd_BitOr)"
    "|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)"
    "|ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_USub)"
    "|AddNot|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceTrueWithFalse|ReplaceFalseWithTrue|NumberReplacer|ZeroIterationForLoop"
    "|RemoveDecorator|ReplaceBreakWithContinue|ReplaceContinueWithBreak"
)
SECONDS = 120  # for one mutant: some of them run for ever


def main() -> None:
    """Mutate the named modules and print what survived."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "modules", nargs="*", default=list(TESTS), metavar="module", help=", ".join(TESTS)
    )
    options.add_argument(
        "--out",
        type=Path,
        default=ROOT / ".mutants",
        help="folder for the results (default: %(default)s)",
    )
    options.add_argument("--list", action="store_true", help="only count the mutants")
    options.add_argument(
        "--sample",
        type=int,
        help="so many of each module's mutants, drawn at random but always the same",
    )
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.list:
        import_what_is_slow()
    for module in chosen.modules:
        found = mutants(ROOT / "minilora" / f"{module}.py")
        if chosen.sample is not None and chosen.sample < len(found):
            found = dict(random.Random(0).sample(sorted(found.items()), chosen.sample))
        if chosen.list:
            print(f"{module:8} {len(found):4} mutants")
            continue
        record = chosen.out / f"{module.replace('/', '.')}.json"
        done = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if run(module, None) != "survived":
            sys.exit(f"{module}: its tests fail without any mutation: mend them first")
        for key, source in found.items():
            if key not in done:
                done[key] = run(module, source)
                record.write_text(json.dumps(done, indent=1, ensure_ascii=False), encoding="utf-8")
        survivors = [key for key in found if done[key] == "survived"]
        killed = len(found) - len(survivors)
        print(f"{module}: {killed} of {len(found)} mutants killed ({killed / len(found):.1%})")
        print("".join(f"  survived  {key}\n" for key in survivors), end="", flush=True)


def import_what_is_slow() -> None:
    """Everything that the tests import, but minilora itself, which every fork imports anew."""
    os.environ |= {"HYPOTHESIS_PROFILE": "dev", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in (
        "torch",
        "numpy",
        "hypothesis",
        "pytest",
        "peft",
        "transformers",
        "bitsandbytes",
        "safetensors.torch",
    ):
        importlib.import_module(name)
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401  lazily imported by their package

    torch.set_num_threads(1)
    from hypothesis import HealthCheck, Phase, settings

    # that a case fails is enough, it need not be a small one
    phases = set(Phase) - {Phase.shrink, Phase.explain}
    settings.register_profile(
        "mutants",
        max_examples=10,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    # what is imported is nobody's garbage: a fork that looks through it copies all of it
    gc.freeze()


def mutants(path: Path) -> dict[str, str]:
    """Mutated sources of one file, each by ``line: what is there now (operator, occurrence)``."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source, found = path.read_text(encoding="utf-8"), {}
    original = meaning(source)
    for name in sorted(operator_names()):
        short = name.rpartition("/")[2]
        # it makes two of every number, one more and one less: one is enough
        step = 2 if short == "NumberReplacer" else 1
        for occurrence in range(0, 10_000 if OPERATORS.fullmatch(short) else 0, step):
            mutated = mutate_code(source.encode("utf-8"), get_operator(name)(), occurrence)
            if mutated is None:
                break
            if meaning(mutated) not in (original, ""):
                number, line = first_difference(source, mutated)
                found[f"{number}: {line} ({short} {occurrence})"] = mutated
    return dict(sorted(found.items(), key=lambda item: int(item[0].partition(":")[0])))


def meaning(source: str) -> str:
    """The syntax tree as text, without what no test can see: annotations, overloads, assertions; empty if it is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # ``not name := value``, say
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.arguments):  # the bare * in a signature is no operator
            node.args, node.posonlyargs, node.kwonlyargs = (
                [*node.posonlyargs, *node.args, *node.kwonlyargs],
                [],
                [],
            )
            node.defaults, node.kw_defaults = [*node.defaults, *filter(None, node.kw_defaults)], []
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            node.keywords = []  # strict=True is an assertion
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            node.body = [part for part in node.body if not is_silent(part)]
    return ast.dump(tree)


def is_silent(node: ast.stmt) -> bool:
    """Whether this is an assertion, or one of a function's overloads, whose body is an ellipsis."""
    body = getattr(node, "body", None)
    overload = isinstance(node, ast.FunctionDef) and ast.dump(body[0]) == ast.dump(
        ast.Expr(ast.Constant(...))
    )
    return isinstance(node, ast.Assert) or overload


def first_difference(before: str, after: str) -> tuple[int, str]:
    """The number of the first line that differs, and what it is now."""
    old, new = before.splitlines(), after.splitlines()
    number = next(
        (n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
        min(len(old), len(new)) - 1,
    )
    return number + 1, new[number].strip()


def run(module: str, source: str | None) -> str:
    """``killed``, ``survived`` or ``timeout``: what a module's tests say of a mutated source, in a fork."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = test(module, source)
        finally:
            os._exit(min(status, 100))
    end = time.monotonic() + SECONDS * (1 if source is not None else 5)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def test(module: str, source: str | None) -> int:
    """Inside the fork: put the source in the module's place and run its tests; pytest's exit status."""
    import pytest

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.setpgid(0, 0)
    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = True
    if source is not None:
        sys.meta_path.insert(0, Replacement(f"minilora.{module.replace('/', '.')}", source))
    files = [
        str(Path("tests", name).with_name(f"test_{Path(name).name}.py")) for name in TESTS[module]
    ] + [f"minilora/{module}.py"]
    # pytest's own loader would pass ours by
    plain = ["--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
    quick = [
        "--hypothesis-profile=mutants",
        "--hypothesis-seed=0",
        "-p",
        "no:logging",
        "-p",
        "no:anyio",
        "--tb=no",
    ]
    return int(pytest.main(["-x", "-q", *plain, *quick, "-m", "not slow", *files]))


class Replacement(importlib.machinery.SourceFileLoader):
    """Finds and loads one module from another source."""

    def __init__(self, name: str, source: str):
        super().__init__(name, str(ROOT / f"{name.replace('.', '/')}.py"))
        self.source = source

    def find_spec(self, name, path=None, target=None):
        return (
            importlib.util.spec_from_file_location(name, self.path, loader=self)
            if name == self.name
            else None
        )

    def get_code(self, fullname):
        return compile(self.source, self.path, "exec")


if __name__ == "__main__":
    main()
