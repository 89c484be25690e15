"""Mutation testing: break the core modules one operator at a time and see if the tests notice.

    python -m tests.mutants lora/layer level0    some modules
    python -m tests.mutants --sample 20          twenty mutants of each
    make mutants                                 all of them: an hour or two on a laptop

The mutations are cosmic-ray's: + becomes -, < becomes <=, a number grows by one, a condition is
negated, a loop does not run, a decorator is missing. Its own runner starts Python and imports
torch, PEFT and bitsandbytes for every mutant; here that happens once, and every mutant runs in a
fork: it imports the mutated source instead of the module and runs the module's tests, with the
``dev`` profile, until the first one fails. A mutant that passes all tests has survived: either
nobody can tell it from the original (docs/mutants.md says why), or a test is missing. A module's
progress is kept in a JSON file, so a run that was stopped continues.

Left out: annotations (nothing evaluates them), mutations of one operator into every other one (one
is enough, as they are noticed together), ``assert`` lines and the ``strict=True`` of a ``zip``,
which asserts too.
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
    "nf4/tensor": ["nf4/tensor", "formats/bitsandbytes_4bit"],
    "nf4/linear": ["nf4/linear", "lora/merging", "invariants"],
    "lora/hyperparameters": ["lora/hyperparameters"],
    "lora/patterns": ["lora/patterns"],
    "lora/config": ["lora/config", "training/setting_names"],
    "lora/linears": ["lora/linears", "lora/adapter_layer"],
    "lora/adapter_layer": ["lora/adapter_layer", "lora/injection", "lora/merging"],
    "lora/layer": ["lora/layer", "lora/config", "lora/injection", "lora/merging", "invariants"],
    "lora/selection": ["lora/selection"],
    "lora/sites": ["lora/sites", "lora/selection"],
    "lora/paths": ["lora/paths"],
    "lora/injection": ["lora/injection", "lora/adapter_layer", "invariants"],
    "lora/merging": ["lora/merging", "lora/requantization", "lora/adapter_layer"],
    "lora/combining": ["lora/combining"],
    "lora/requantization": ["lora/requantization", "lora/merging", "lora/adapter_layer"],
    "lora/weight_diff": ["lora/weight_diff"],
    "methods/dora": ["methods/dora", "methods/injection", "formats/variant_files"],
    "methods/pissa": ["methods/pissa", "methods/injection", "formats/variant_files"],
    "methods/vera": ["methods/vera", "methods/injection", "formats/method_files"],
    "methods/ia3": ["methods/ia3", "methods/injection", "methods/training_hooks"],
    "methods/bitfit": ["methods/bitfit", "methods/injection", "formats/method_files"],
    "methods/norm_tuning": ["methods/norm_tuning", "formats/method_files"],
    "methods/adalora": ["methods/adalora", "methods/training_hooks", "formats/method_files"],
    "methods/loftq": ["methods/loftq"],
    "methods/prompt_tuning": ["methods/prompt_tuning"],
    "methods/prefix_tuning": ["methods/prompt_tuning"],
    "methods/bottleneck": ["methods/bottleneck", "methods/prompt_tuning"],
    "methods/streams": ["methods/prompt_tuning"],
    "methods/injection": ["methods/injection", "methods/pissa", "methods/dora"],
    "methods/training_hooks": ["methods/training_hooks", "training/optimizer"],
    "methods/checks": ["methods/checks"],
    "formats/method_files": ["formats/method_files"],
    "formats/save_and_load": ["formats/save_and_load", "formats/base_fingerprint"],
    "formats/mismatches": ["formats/save_and_load"],
    "ledger/measurement": ["ledger/measurement", "ledger/tensor_tracker"],
    "ledger/tensor_tracker": ["ledger/tensor_tracker"],
    "training/batches": ["training/batches"],
    "training/objective": ["training/objective"],
    "training/optimizer": ["training/optimizer"],
    "training/order": ["training/order"],
    "training/steps": ["training/steps", "training/loop"],
    "training/run": ["training/loop", "training/checkpoint"],
    "training/loop": [f"training/{name}" for name in ("loop", "observers", "objective", "limits")],
    "training/limits": ["training/limits", "training/loop"],
    "training/observers": ["training/observers", "training/loop"],
    "training/checkpoint": ["training/checkpoint", "training/loop"],
}
OPERATORS = re.compile(
    "ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Mul_Add|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul"
    "|RShift_LShift|LShift_RShift|BitOr_BitAnd|BitAnd_BitOr)"
    "|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)"
    "|ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_USub)"
    "|AddNot|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    "|NumberReplacer|ZeroIterationForLoop|RemoveDecorator"
    "|ReplaceBreakWithContinue|ReplaceContinueWithBreak"
)
SECONDS = 120  # for one mutant: some of them run forever


def main() -> None:
    """Mutate the named modules and print what survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = ", ".join(TESTS)
    add("modules", nargs="*", default=list(TESTS), metavar="module", help=names)
    folder = "folder for the results (default: %(default)s)"
    add("--out", type=Path, default=ROOT / ".mutants", help=folder)
    add("--list", action="store_true", help="only count the mutants")
    drawn = "so many of each module's mutants, drawn at random but always the same"
    add("--sample", type=int, help=drawn)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.list:
        import_what_is_slow()
    for module in options.modules:
        sources = mutants(ROOT / "minilora" / f"{module}.py")
        if options.sample is not None and options.sample < len(sources):
            sources = dict(random.Random(0).sample(sorted(sources.items()), options.sample))
        if options.list:
            print(f"{module:22} {len(sources):4} mutants")
        else:
            try_all(module, sources, options.out / f"{module.replace('/', '.')}.json")


def try_all(module: str, sources: dict[str, str], record: Path) -> None:
    """Run the mutants of a module that ``record`` does not have yet, and print what survived."""
    done = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if run(module, None) != "survived":
        sys.exit(f"{module}: its tests fail without any mutation: fix them first")
    for key, source in sources.items():
        if key not in done:
            done[key] = run(module, source)
            record.write_text(json.dumps(done, indent=1, ensure_ascii=False), encoding="utf-8")
    survivors = [key for key in sources if done[key] == "survived"]
    killed = len(sources) - len(survivors)
    print(f"{module}: {killed} of {len(sources)} mutants killed ({killed / len(sources):.1%})")
    print("".join(f"  survived  {key}\n" for key in survivors), end="", flush=True)


def import_what_is_slow() -> None:
    """Import everything that the tests need but minilora itself, which every fork imports anew."""
    os.environ |= {"HYPOTHESIS_PROFILE": "dev", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    packages = "torch numpy hypothesis pytest peft transformers bitsandbytes safetensors.torch"
    for name in packages.split():
        importlib.import_module(name)
    import torch

    # their package imports them lazily
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    from hypothesis import HealthCheck, Phase, settings

    # a failing case is enough, it need not be small
    phases = set(Phase) - {Phase.shrink, Phase.explain}
    quick = {"max_examples": 10, "deadline": None, "phases": phases}
    settings.register_profile("mutants", suppress_health_check=list(HealthCheck), **quick)
    # imported modules are never garbage: a fork that collected them would copy all of them
    gc.freeze()


def mutants(path: Path) -> dict[str, str]:
    """Mutated sources of one file, each by ``line: its new text (operator, occurrence)``."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source, sources = path.read_text(encoding="utf-8"), {}
    original = meaning(source)
    for name in sorted(operator_names()):
        short = name.rpartition("/")[2]
        # it makes two mutants of every number, one more and one less: one is enough
        step = 2 if short == "NumberReplacer" else 1
        for occurrence in range(0, 10_000 if OPERATORS.fullmatch(short) else 0, step):
            mutated = mutate_code(source.encode("utf-8"), get_operator(name)(), occurrence)
            if mutated is None:
                break
            if meaning(mutated) not in (original, ""):
                number, line = first_difference(source, mutated)
                sources[f"{number}: {line} ({short} {occurrence})"] = mutated
    return dict(sorted(sources.items(), key=lambda item: int(item[0].partition(":")[0])))


def meaning(source: str) -> str:
    """The syntax tree as text, without annotations, overloads and assertions: no test sees those.

    Empty when the source is not Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # ``not name := value``, say
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.arguments):  # the bare * in a signature is not an operator
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.posonlyargs, node.kwonlyargs = [], []
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
    if not isinstance(node, ast.FunctionDef):
        return isinstance(node, ast.Assert)
    return ast.dump(node.body[0]) == ast.dump(ast.Expr(ast.Constant(...)))


def first_difference(before: str, after: str) -> tuple[int, str]:
    """The number of the first line that differs, and its new text."""
    old, new = before.splitlines(), after.splitlines()
    differing = (n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    number = next(differing, min(len(old), len(new)) - 1)
    return number + 1, new[number].strip()


def run(module: str, source: str | None) -> str:
    """Run a module's tests on a mutated source in a fork: ``killed``, ``survived``, ``timeout``."""
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
    """In the fork: put the source in the module's place, run its tests; pytest's exit status."""
    import pytest

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.setpgid(0, 0)
    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = True
    if source is not None:
        sys.meta_path.insert(0, Replacement(f"minilora.{module.replace('/', '.')}", source))
    paths = [Path("tests", name) for name in TESTS[module]]
    files = [str(path.with_name(f"test_{path.name}.py")) for path in paths]
    # plain: pytest's own loader would pass ours by
    options = "-x -q --assert=plain --tb=no --hypothesis-profile=mutants --hypothesis-seed=0"
    options += " -p no:cacheprovider -p no:xdist -p no:logging -p no:anyio"
    return int(pytest.main([*options.split(), "-m", "not slow", *files, f"minilora/{module}.py"]))


class Replacement(importlib.machinery.SourceFileLoader):
    """Finds and loads one module from another source."""

    def __init__(self, name: str, source: str):
        super().__init__(name, str(ROOT / f"{name.replace('.', '/')}.py"))
        self.source = source

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, fullname):
        return compile(self.source, self.path, "exec")


if __name__ == "__main__":
    main()
