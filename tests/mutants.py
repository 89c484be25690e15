"""Mutation testing: break the core modules one operator at a time and see if the tests notice.

    python -m tests.mutants lora/layer level0    some modules
    python -m tests.mutants --sample 20 hub      twenty mutants of each module of a wing
    make mutants                                 all of them: hours on a laptop

The mutations are cosmic-ray's: + becomes -, < becomes <=, a number grows by one, a condition is
negated, a loop does not run, a decorator is missing. Its own runner starts Python and imports
torch, PEFT and bitsandbytes for every mutant; here that happens once, and every mutant runs in a
fork, with the ``dev`` profile, until the first test fails. Two ways, the quick one first:

    swapped      the tests are collected once; the fork gives the mutated functions their new code
    imported     the fork imports the mutated source instead of the module: for what a function's
                 code does not hold (constants, defaults, decorators), and for what survived

A mutant that passes all tests has survived: either nobody can tell it from the original
(docs/mutants.md says why), or a test is missing. A module's progress is kept in a JSON file, so a
run that was stopped continues.

Left out: annotations (nothing evaluates them), mutations of one operator into every other one (one
is enough, as they are noticed together), ``assert`` lines, the ``strict=True`` of a ``zip`` and the
``frozen=True`` of a dataclass, which assert too, and ``if TYPE_CHECKING``.
"""

import argparse
import ast
import gc
import importlib.machinery
import importlib.util
import json
import math
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

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
    "checks": ["checks"],
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
    "training/replay": ["training/replay"],
    "training/ranks": ["training/ranks", "training/many", "scale/trainer"],
    "training/many": ["training/many"],
    "training/mixture": ["training/mixture"],
}
# These wings' tests mirror their modules (tests/hub/test_page.py holds hub/page.py); the others:
MIRRORED = {
    "hub": {
        "adapter": ["adapter", "store"],
        "catalog": ["store", "router"],
        "database": ["store"],
        "ngrams": ["router"],
        "routing": ["router"],
        "store": ["transport", "compression", "store"],
        "stored_files": ["stored_files", "transport", "compression", "store"],
        "upkeep": ["registry"],
    },
    "jobs": {
        "adapt": ["adapt", "live"],
        "api_forms": ["api_forms", "api"],
        "evaluation": ["evaluation", "steps"],
        "feedback_tables": ["correction", "feedback"],
        "fine_tuning": ["api"],
        "forecast": ["forecast", "worker"],
        "judge": ["adapt", "learning"],
        "preflight": ["preflight", "steps", "worker"],
        "pulse": ["pulse", "worker"],
        "recipe": ["learning", "adapt", "corrections"],
        "tables": ["claims", "queue"],
        "training_step": ["training_step", "steps", "worker"],
        "work": ["work", "steps", "worker"],
    },
    "serving": {
        "access": ["access", "attacks", "complaints"],
        "adapter_files": ["adapter_files", "adapter_store"],
        "adapter_store": ["adapter_store", "adapter_files"],
        "answered": ["answered", "complaints", "answer_cache"],
        "audit_routes": ["audit"],
        "completions": ["completions", "answer_cache"],
        "engine": ["engine", "waiting"],
        "fairness": ["fairness", "waiting", "faults"],
        "gateway": ["relay", "gateway"],
        "generation": ["completions", "complaints", "audit", "traffic"],
        "health": ["replies", "app"],
        "page_routes": ["page"],
        "quotas": ["tenants"],
        "relay": ["relay", "gateway"],
        "replies": ["replies", "completions"],
        "reply_forms": ["growing_text", "completions"],
        "row_batch": ["engine", "exactness", "waiting"],
        "service": ["model_routes", "completions"],
        "traffic_routes": ["traffic"],
        "workers": ["workers", "gateway"],
    },
}
for wing, others in MIRRORED.items():
    for path in sorted(ROOT.glob(f"minilora/{wing}/[!_]*.py")):
        tests = others.get(path.stem, [path.stem])
        TESTS[f"{wing}/{path.stem}"] = [name if "/" in name else f"{wing}/{name}" for name in tests]
OPERATORS = re.compile(
    "ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Mul_Add|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul"
    "|RShift_LShift|LShift_RShift|BitOr_BitAnd|BitAnd_BitOr)"
    "|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)"
    "|ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_USub)"
    "|AddNot|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    "|NumberReplacer|ZeroIterationForLoop|RemoveDecorator"
    "|ReplaceBreakWithContinue|ReplaceContinueWithBreak"
)
SECONDS = 120  # of the clock for one mutant: some of them run, or wait, forever
CPU_SECONDS = 10  # of the processor, beyond three times what the unbroken module takes


def main() -> None:
    """Mutate the named modules and print what survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = "a module or a wing of: " + ", ".join(TESTS)
    add("modules", nargs="*", default=list(TESTS), metavar="module", help=names)
    folder = "folder for the results (default: %(default)s)"
    add("--out", type=Path, default=ROOT / ".mutants", help=folder)
    add("--list", action="store_true", help="only count the mutants")
    drawn = "so many of each module's mutants, drawn at random but always the same"
    add("--sample", type=int, help=drawn)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.list:
        import_what_is_slow(options.modules)
    named = [m for name in options.modules for m in TESTS if name in (m, m.partition("/")[0])]
    # another pytest that ends meanwhile tidies the common folder, and a test that misses its files
    # would seem to have noticed the mutant
    with tempfile.TemporaryDirectory(prefix="mutants-") as own:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = own
        for module in named:
            sources = mutants(ROOT / "minilora" / f"{module}.py", options.sample)
            if options.list:
                print(f"{module:22} {len(sources):4} mutants")
            else:
                try_all(module, sources, options.out / f"{module.replace('/', '.')}.json")


def try_all(module: str, sources: dict[str, str], record: Path) -> None:
    """Run the mutants of a module that ``record`` does not have yet, and print what survived."""
    before = results(record)
    if new := {key: source for key, source in sources.items() if key not in before}:
        plugin = OneCollection(module, new, record)
        if in_a_fork(partial(test, module, None, plugin))[0] != "survived":
            sys.exit(f"{module}: its tests fail without any mutation: fix them first")
        swapped = results(record)
        for key in [key for key in new if key not in swapped]:
            import_it = partial(test, module, new[key], None)
            keep(record, key, in_a_fork(import_it, SECONDS)[0])
    done = results(record)
    survivors = [key for key in sources if done[key] == "survived"]
    killed = len(sources) - len(survivors)
    print(f"{module}: {killed} of {len(sources)} mutants killed ({killed / len(sources):.1%})")
    print("".join(f"  survived  {key}\n" for key in survivors), end="", flush=True)


def results(record: Path) -> dict[str, str]:
    """What became of a module's mutants so far."""
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}


def keep(record: Path, key: str, result: str) -> None:
    """Write down what became of a mutant."""
    done = json.dumps({**results(record), key: result}, indent=1, ensure_ascii=False)
    record.write_text(done, encoding="utf-8")


def import_what_is_slow(modules: list[str]) -> None:
    """Import everything that the tests need but minilora itself, which every fork imports anew."""
    os.environ |= {"HYPOTHESIS_PROFILE": "dev", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    packages = ["torch", "numpy", "hypothesis", "pytest", "safetensors.torch"]
    if all(module.startswith(tuple(MIRRORED)) for module in modules):
        packages += ["fastapi", "httpx", "openai"]
    else:
        packages += ["peft", "transformers", "bitsandbytes"]
        # their package imports them lazily
        packages += ["transformers.models.auto", "transformers.models.llama.modeling_llama"]
    for name in packages:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    from hypothesis import HealthCheck, Phase, settings

    # a failing case is enough, it need not be small
    phases = set(Phase) - {Phase.shrink, Phase.explain}
    quick = {"max_examples": 10, "deadline": None, "phases": phases}
    settings.register_profile("mutants", suppress_health_check=list(HealthCheck), **quick)
    # imported modules are never garbage: a fork that collected them would copy all of them
    gc.freeze()


def mutants(path: Path, sample: int | None = None) -> dict[str, str]:
    """Mutated sources of one file, each by ``line: its new text (operator, occurrence)``."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source, sources = path.read_text(encoding="utf-8"), {}
    original, places = meaning(source), list(occurrences(source))
    if sample is not None:
        random.Random(0).shuffle(places)
    for name, occurrence in places:
        mutated = mutate_code(source.encode("utf-8"), get_operator(name)(), occurrence)
        if meaning(mutated) not in (original, ""):
            number, line = first_difference(source, mutated)
            sources[f"{number}: {line} ({name.rpartition('/')[2]} {occurrence})"] = mutated
        if len(sources) == sample:
            break
    return dict(sorted(sources.items(), key=lambda item: int(item[0].partition(":")[0])))


def occurrences(source: str) -> Iterator[tuple[str, int]]:
    """Each operator with the numbers of the places where it can be used, in cosmic-ray's order."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    tree = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        short = name.rpartition("/")[2]
        if OPERATORS.fullmatch(short):
            operator = get_operator(name)()
            places = sum(len(list(operator.mutation_positions(node))) for node in tree)
            # it makes two mutants of every number, one more and one less: one is enough
            for occurrence in range(0, places, 2 if short == "NumberReplacer" else 1):
                yield name, occurrence


def meaning(source: str) -> str:
    """The syntax tree as text, without annotations, overloads and assertions: no test sees those.

    Empty when the source is not Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # ``not name := value``, say
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
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
        if isinstance(node, ast.keyword) and node.arg == "frozen":
            node.value = ast.Constant(None)  # and so is a dataclass's frozen=True
        functions = ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, functions | ast.ClassDef | ast.Module):
            node.body = [part for part in node.body if not is_silent(part)]
    return ast.dump(tree)


def is_silent(node: ast.stmt) -> bool:
    """Whether this is an assertion, or one of a function's overloads, whose body is an ellipsis, or
    what is imported for annotations only.
    """
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    if not isinstance(node, ast.FunctionDef):
        return isinstance(node, ast.Assert)
    return ast.dump(node.body[0]) == ast.dump(ast.Expr(ast.Constant(...)))


def first_difference(before: str, after: str) -> tuple[int, str]:
    """The number of the first line that differs, and its new text."""
    old, new = before.splitlines(), after.splitlines()
    differing = (n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    number = next(differing, min(len(old), len(new)) - 1)
    return number + 1, new[number].strip()


def in_a_fork(
    work: Callable[[], int], seconds: float = math.inf, cpu: int = 0
) -> tuple[str, float]:
    """Run tests in a fork: ``killed``, ``survived`` or ``timeout``, and their CPU seconds.

    With a limit of ``seconds`` the fork leads a process group, and all of it ends with the tests.
    """
    begin, child = time.monotonic(), os.fork()
    if child == 0:
        status = 1
        try:
            if seconds < math.inf:
                os.setpgid(0, 0)
            if cpu:
                resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
            status = work()
        finally:
            os._exit(min(status, 100))
    done, result = 0, "timeout"
    try:
        while not done and time.monotonic() - begin < seconds:
            done, status, used = os.wait4(child, os.WNOHANG)
            time.sleep(0.01)
    finally:  # also when this is interrupted
        if seconds < math.inf:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        if not done:
            _, _, used = os.wait4(child, 0)
    if done and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        result = "survived" if status == 0 else "killed"
    return result, used.ru_utime + used.ru_stime


def test(module: str, source: str | None, plugin: object) -> int:
    """In a fork: put the source in the module's place, run its tests; pytest's exit status."""
    import pytest

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = True
    if source is not None:
        sys.meta_path.insert(0, Replacement(f"minilora.{module.replace('/', '.')}", source))
    paths = [Path("tests", name) for name in TESTS[module]]
    files = [str(path.with_name(f"test_{path.name}.py")) for path in paths]
    # plain: pytest's own loader would pass ours by
    options = "-x -q --assert=plain --tb=no --hypothesis-profile=mutants --hypothesis-seed=0"
    options += " -p no:cacheprovider -p no:xdist -p no:anyio"
    options += " -o tmp_path_retention_policy=none"
    args = [*options.split(), "-m", "not slow", *files, f"minilora/{module}.py"]
    return int(pytest.main(args, [plugin] if plugin else None))


class OneCollection:
    """A plugin of pytest: instead of running the tests once, runs them once a mutant, in forks."""

    def __init__(self, module: str, sources: dict[str, str], record: Path):
        self.path = str(ROOT / "minilora" / f"{module}.py")
        self.sources, self.record = sources, record

    def pytest_runtestloop(self, session) -> bool:
        result, used = in_a_fork(partial(self.tests, session, {}), 10 * SECONDS)
        if result != "survived":
            raise session.Failed
        original = compile(Path(self.path).read_text(encoding="utf-8"), self.path, "exec")
        for key, source in self.sources.items():
            codes = changed(original, compile(source, self.path, "exec"))
            if codes:
                cpu = CPU_SECONDS + int(3 * used)
                result, _ = in_a_fork(partial(self.tests, session, codes), SECONDS, cpu)
                if result != "survived":  # else it is imported, too: that may be noticed
                    keep(self.record, key, result)
        return True

    def tests(self, session, codes: dict[CodeType, CodeType]) -> int:
        """In the fork: give the functions their mutated code, run the tests."""
        from _pytest.main import pytest_runtestloop

        for each in gc.get_objects():
            if isinstance(each, FunctionType) and each.__code__.co_filename == self.path:
                each.__code__ = codes.get(each.__code__, each.__code__)
        with suppress(session.Failed):
            pytest_runtestloop(session)
        return int(session.testsfailed > 0)


def changed(old: CodeType, new: CodeType) -> dict[CodeType, CodeType] | None:
    """The functions whose code differs, old -> new; None where what a module or a class says
    itself differs.
    """
    pairs = list(zip(old.co_consts, new.co_consts, strict=False))
    inner = [(a, b) for a, b in pairs if isinstance(a, CodeType) and isinstance(b, CodeType)]
    said = [
        (code.co_code, code.co_names, [repr(c) for c in code.co_consts if type(c) is not CodeType])
        for code in (old, new)
    ]
    is_function = bool(old.co_flags & 1)  # CO_OPTIMIZED: not a module's or a class's own code
    codes = {old: new} if is_function else {}
    if not is_function and said[0] != said[1]:
        return None
    for a, b in inner:
        below = changed(a, b)
        if below is None:
            return None
        codes |= below
    same = said[0] == said[1] and not (codes.keys() - {old})
    return {} if same else codes


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
