"""A config chooses the same modules as in PEFT, and of a plan the same ones as of the model."""

import copy
import dataclasses
import re
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig as Theirs
from peft import inject_adapter_in_model
from torch import nn

from minilora import LoraConfig, explain_match, inject
from minilora.ledger import architecture
from minilora.ledger import planned_sites as planned
from minilora.ledger.dimensions import Architecture, LinearShape
from minilora.lora.layer import lora_layers
from minilora.lora.selection import Match, Site, not_a_linear, pattern_for, select
from minilora.lora.sites import sites_of

from .test_injection import SIZES, tiny

PARTS = st.sampled_from(["layers", "h", "q", "k_proj", "xq", "experts", "lm_head", "0", "1", "2"])
EXPRESSIONS = [r".*q", r".*layers\.\d\..*", r".*(q|k_proj)", "^q", r"[01]\.q", "q|h", "q$", r".*\d"]
REGEXES = st.sampled_from([*EXPRESSIONS, "all-linear"])


@st.composite
def trees(draw, depth=4):
    """Modules in modules with Linears as leaves; names contain one another, and have numbers."""
    tree = nn.ModuleDict()
    for name in draw(st.lists(PARTS, min_size=1, max_size=3, unique=True)):
        is_leaf = depth == 1 or draw(st.integers(0, 2)) == 0
        tree[name] = nn.Linear(2, 3, bias=False) if is_leaf else draw(trees(depth - 1))
    return tree


def linear_paths(tree):
    """The paths of the Linears, in order."""
    return [name for name, module in tree.named_modules() if isinstance(module, nn.Linear)]


@st.composite
def trees_and_settings(draw):
    """A tree, and the same fields for PEFT's LoraConfig and for ours.

    Most entries are the end of some Linear's path.
    """
    tree = draw(trees())
    paths = [path.split(".") for path in linear_paths(tree)]
    ends = st.sampled_from([".".join(path[i:]) for path in paths for i in range(len(path))])
    entries = st.one_of(ends, ends, ends, ends, PARTS)
    regexes = st.one_of(ends, ends, REGEXES)
    targets = st.one_of(*[st.lists(entries, min_size=1, max_size=4)] * 3, REGEXES)
    none = st.just([])
    fields = {
        "target_modules": draw(targets),
        "exclude_modules": draw(st.one_of(none, none, st.lists(entries, max_size=2), regexes)),
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(st.integers(1, 9)),
        "use_rslora": draw(st.booleans()),
        "rank_pattern": draw(st.dictionaries(regexes, st.integers(1, 9), max_size=3)),
        "alpha_pattern": draw(st.dictionaries(regexes, st.integers(1, 9), max_size=3)),
    }
    if not isinstance(fields["target_modules"], str):
        several = st.lists(st.integers(0, 3), max_size=3)
        layers = draw(st.one_of(st.none(), st.integers(0, 2), several))
        fields["layers_to_transform"] = layers
        if layers not in (None, []):
            names = st.one_of(st.none(), PARTS, st.lists(PARTS, max_size=2))
            fields["layers_pattern"] = draw(names)
    return tree, fields


def as_peft_does(model, fields):
    """{path: (r, alpha, scaling)} of the adapters that PEFT puts in, or None where it refuses."""
    model = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(Theirs(**fields), model)
    except ValueError:
        return None
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    numbers = ("r", "lora_alpha", "scaling")
    return {name: tuple(getattr(m, n)["default"] for n in numbers) for name, m in layers}


@settings(max_examples=100)
@given(trees_and_settings())
def test_the_same_modules_get_the_same_rank_and_alpha_as_in_peft(case):
    """Our strictness aside: PEFT accepts entries that match nothing, and an lm_head as any Linear.

    PEFT spells "all-linear" out into a list of paths, so a Linear ``q`` makes it choose ``part.q``
    too, whatever that is; here a Linear is what it says.
    """
    tree, fields = case
    if fields["target_modules"] == "all-linear":
        ends = tuple(f".{path}" for path in linear_paths(tree))
        assume(not any(name.endswith(ends) for name, _ in tree.named_modules()))
        fields["exclude_modules"] = ["lm_head"] if "lm_head" in tree else fields["exclude_modules"]
    theirs = as_peft_does(tree, fields)
    config = LoraConfig(**fields)
    chosen = [site.path for site in sites_of(tree) if pattern_for(site, config)]
    if chosen and set(chosen) <= set(linear_paths(tree)):
        ours = {name: config.rank_and_alpha(name) for name in chosen}
        assert ours == {name: numbers[:2] for name, numbers in theirs.items()}
    else:
        assert theirs is None
    try:
        inject(tree, config)
    except ValueError as error:
        strict = re.search("no module (that gets an adapter )?matches", str(error))
        assert theirs is None or strict
    else:
        layers = {name: (la.r, la.lora_alpha, la.scaling) for name, la in lora_layers(tree)}
        assert layers == theirs


def planned_sites(tree):
    """The sites of the same tree as the ledger plans it: from names and sizes, without a tensor."""
    linears = []
    for path in linear_paths(tree):
        role = "head" if path == "lm_head" else "dense"
        linears.append(LinearShape(path, 2, 3, role=role))
    return planned.sites_of(Architecture("tree", "shapes", tuple(linears)))


def outcome(sites, config):
    """The matches, or the error up to the reason why a module is refused."""
    try:
        return select(sites, config)
    except ValueError as error:
        return re.sub(r"(matches [\w.]+), (an? |whose ).*", r"\1: refused", str(error))


@settings(max_examples=100)
@given(trees_and_settings())
def test_the_plan_agrees_with_the_model(case):
    """Names and sizes are all that a choice needs, so what is planned is what will be trained."""
    tree, fields = case
    config = LoraConfig(**fields)
    planned, live = outcome(planned_sites(tree), config), outcome(sites_of(tree), config)
    assert planned == live
    assert isinstance(live, str) or all(isinstance(match, Match) for match in live)


CONFIG = {"model_type": "llama", **SIZES, "num_key_value_heads": 2}
TARGETS = ["q_proj", "mlp", "embed_tokens", "norm", "input_layernorm", "lm_head", "all-linear"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_the_plan_of_a_llama_refuses_what_the_model_does(target, tied):
    """Embeddings and norms are no Linears, and a tied head may not change, in a plan as in life."""
    plan = architecture({**CONFIG, "tie_word_embeddings": tied})
    live = sites_of(tiny(tie_word_embeddings=tied, num_key_value_heads=2))
    config = LoraConfig(target_modules=target if target == "all-linear" else [target])
    assert outcome(planned.sites_of(plan), config) == outcome(live, config)


def test_a_match_says_what_it_costs_and_how_high_its_rank_can_be():
    chosen, left = Match("q", 6, 4, "q", 2), Match("k", 6, 4, None, 2)
    assert (chosen.parameters, left.parameters) == (2 * (6 + 4), 0)
    assert chosen.full_rank == Match("q", 4, 6, "q", 2).full_rank == 4


def test_a_site_can_be_adapted_unless_it_says_why_not():
    assert (Site("norm").in_features, Site("norm").out_features) == (0, 0)
    site = Site("q", 4, 2)
    assert (site.refused, site.is_linear, site.is_head) == ("", True, False)
    [match] = select([site], LoraConfig(r=3, target_modules="all-linear"))
    assert match == Match("q", 4, 2, "all-linear", 3)


def test_a_linear_without_sizes_is_listed_nowhere():
    """Its weight is computed from others, so it cannot have an adapter."""
    computed = Site("computed", refused="but it has no weight of its own")
    matches = select([computed, Site("q", 4, 2)], LoraConfig(target_modules=["q"]))
    assert [match.name for match in matches] == ["q"]


def test_what_was_chosen_cannot_change_afterwards():
    report = explain_match(pair(), LoraConfig(target_modules=["fine"]))
    for value, field in ((Site("q"), "path"), (report, "matches"), (report.matches[0], "r")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


@pytest.mark.parametrize(("kind", "article"), [("Embedding", "an"), ("ReLU", "a")])
def test_a_module_of_another_kind_is_named_with_its_article(kind, article):
    assert not_a_linear(kind).startswith(f"{article} {kind}: only Linears can be adapted; write")


def test_one_pattern_of_several_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="no module matches 'c_attn'"):
        inject(tiny(), LoraConfig(target_modules=["q_proj", "c_attn"]))


def test_a_typo_is_an_error_that_lists_the_candidates_and_suggests_the_nearest():
    suggestion = r"no module matches 'q_porj'; did you mean 'q_proj'\? "
    with pytest.raises(ValueError, match=rf"{suggestion}Linears of this model: q_proj \(×2\), "):
        inject(tiny(), LoraConfig(target_modules=["q_porj", "v_proj"]))


def test_a_regular_expression_must_match_the_whole_path():
    with pytest.raises(ValueError, match="no module matches '_proj'"):
        inject(tiny(), LoraConfig(target_modules="_proj"))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("q_proj", r'a bare string is a regular expression for the whole path; write \["q_proj"\]'),
        ("q_proj,v_proj", r'for the whole path; write \["q_proj", "v_proj"\]'),
        ("q_proj, v_proj,", r'for the whole path; write \["q_proj", "v_proj"\]'),
        ("q_proj|v_proj", r'for the whole path; write r"\.\*\(q_proj\|v_proj\)\.\*"'),
    ],
)
def test_a_bare_string_is_told_to_be_a_pattern_for_the_whole_path(given, hint):
    with pytest.raises(ValueError, match=hint) as error:
        inject(tiny(), LoraConfig(target_modules=given))
    assert "did you mean" not in str(error.value)


def test_a_bare_string_with_an_unknown_name_in_it_is_a_typo():
    with pytest.raises(ValueError, match=r"no module matches 'q_proj,c_attn'") as error:
        inject(tiny(), LoraConfig(target_modules="q_proj,c_attn"))
    assert "a bare string" not in str(error.value)


def test_a_pattern_that_matches_only_what_is_excluded_is_not_called_a_name():
    fields = {"target_modules": r".*q_proj", "exclude_modules": ["q_proj"]}
    with pytest.raises(ValueError, match=r"no module matches '\.\*q_proj' after excl") as error:
        inject(tiny(), LoraConfig(**fields))
    assert "a bare string" not in str(error.value)


def test_a_model_without_linears_says_so():
    message = "no module matches 'q_proj'. Linears of this model: none: this model has no Linear"
    with pytest.raises(ValueError, match=message):
        inject(nn.Sequential(nn.LayerNorm(3)), LoraConfig(target_modules=["q_proj"]))


def pair():
    """Two Linears, ``fine`` and ``part``."""
    return nn.ModuleDict({"fine": nn.Linear(4, 4), "part": nn.Linear(4, 4)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_modules": ["fine"]}, r"'fine' after exclude_modules=\('fine',\)"),
        ({"layers_to_transform": [3]}, r"'fine' in layers_to_transform=\(3,\)"),
        ({"exclude_modules": ["dwon"]}, "exclude_modules: no module matches 'dwon', so it would"),
        ({"exclude_modules": ["part", "x"]}, "exclude_modules: no module matches 'x', so"),
        ({"exclude_modules": "all-linear"}, "exclude_modules: no module matches 'all-linear'"),
        ({"rank_pattern": {"part": 2}}, "rank_pattern: no module that gets an adapter matches 'pa"),
        ({"alpha_pattern": {"part": 2}}, "alpha_pattern: no module that gets an adapter matches "),
    ],
)
def test_whatever_narrows_nothing_or_too_much_is_a_typo(fields, message):
    """As an exclusion, ``"all-linear"`` is a regular expression, as in PEFT; it matches nothing."""
    model = nn.ModuleDict({"layers": nn.ModuleList([pair()])})
    with pytest.raises(ValueError, match=message):
        explain_match(model, LoraConfig(target_modules=["fine"], **fields))


def test_the_report_names_shapes_counts_and_patterns_with_alike_modules_on_one_line(base):
    report = inject(base, LoraConfig(r=8, target_modules=["q_proj", r"v_proj"]))
    lines = {line.split()[0].rpartition(".")[2]: line for line in str(report).splitlines()}
    q = "model.layers.*.self_attn.q_proj 6 128 → 128 8 12,288 'q_proj'"
    assert lines["q_proj"].split() == q.split()
    assert lines["k_proj"].split()[-3:] == ["–", "0", "–"]
    total = str(report).splitlines()[-1]
    assert total == "21,504 of 1,325,696 parameters train (1.62%)"
    assert len(report.chosen) == 12


@pytest.mark.parametrize(("count", "name"), [(1, "layers.0"), (2, "layers.*"), (3, "layers.*")])
def test_modules_share_a_line_from_two_on(count, name):
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2) for _ in range(count)])})
    report = explain_match(model, LoraConfig(target_modules="all-linear"))
    assert str(report).splitlines()[1].split()[:2] == [name, str(count)]


def test_numbers_inside_a_name_are_no_index():
    model = nn.ModuleDict({"fc1": nn.Linear(3, 3), "fc2": nn.Linear(3, 3)})
    report = inject(model, LoraConfig(target_modules=["fc1"]))
    assert str(report).splitlines()[1].split()[:2] == ["fc1", "1"]


def test_the_report_shows_each_rank():
    model = nn.ModuleDict({"layers": nn.ModuleList([pair() for _ in range(3)])})
    narrowed = {"layers_to_transform": [0, 2], "layers_pattern": "layers"}
    report = inject(model, LoraConfig(2, 4, ["fine"], rank_pattern={"0.fine": 4}, **narrowed))
    ranks = [(match.name, match.r) for match in report.chosen]
    assert ranks == [("layers.0.fine", 4), ("layers.2.fine", 2)]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.trainable == trained == (4 + 2) * (4 + 4)


def test_the_report_says_where_a_rank_is_more_than_a_matrix_can_have():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2), nn.Linear(2, 4))

    def last_line(r, **patterns):
        config = LoraConfig(r, target_modules=["0", "1", "2"], **patterns)
        return str(explain_match(model, config)).splitlines()[-1]

    one = "r=3 is above min(in, out) = 2 of 1: the update cannot have a higher rank than its matrix"
    assert last_line(2, rank_pattern={"1": 3}).startswith(one)
    assert last_line(3).startswith("r=3 is above min(in, out) = 2 of 1 (and 1 more): the update")
    assert "parameters train" in last_line(2)
