"""Modules that look like Linears but would pass an adapter by are refused by name."""

import copy
import re
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from minilora import LoraConfig, explain_match, inject
from minilora.lora.layer import lora_layers
from minilora.lora.selection import pattern_for
from minilora.lora.sites import sites_of


class Model(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.fine, self.part = nn.Linear(4, 4), part


@pytest.mark.parametrize(
    ("part", "target"),
    [(nn.MultiheadAttention(8, 2), "out_proj"), (nn.TransformerEncoderLayer(8, 2, 16), "linear1")],
)
def test_linears_whose_weight_is_read_without_calling_them_are_refused(part, target):
    """torch's fused attention never calls the module: the adapter would train (or not even that) and never be used."""
    with pytest.raises(
        ValueError, match=f"{target}, but {type(part).__name__} reads its weight without calling it"
    ):
        inject(Model(part), LoraConfig(target_modules=["fine", target]))


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_weight_that_is_computed_from_others_is_refused_and_listed_nowhere(wrap):
    model = Model(wrap(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"matches part, but .*no plain floating-point weight"):
        inject(model, LoraConfig(target_modules=["part"]))
    report = inject(model, LoraConfig(target_modules=["fine"]))
    assert [match.name for match in report.matches] == ["fine"]


def test_numbers_inside_a_name_are_no_index():
    report = inject(
        nn.ModuleDict({"fc1": nn.Linear(3, 3), "fc2": nn.Linear(3, 3)}),
        LoraConfig(target_modules=["fc1"]),
    )
    assert str(report).splitlines()[1].split()[:2] == ["fc1", "1"]


def test_an_exclusion_that_leaves_nothing_out_is_a_typo():
    with pytest.raises(ValueError, match="exclude_modules: no module matches 'dwon_proj'"):
        inject(
            Model(nn.Linear(4, 4)),
            LoraConfig(target_modules=["fine"], exclude_modules=["dwon_proj"]),
        )


def test_a_quantized_or_integer_weight_is_refused():
    part = nn.Linear(4, 4)
    part.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="no plain floating-point weight"):
        inject(Model(part), LoraConfig(target_modules=["part"]))


PARTS = st.sampled_from(["layers", "h", "q", "k_proj", "xq", "experts", "lm_head", "0", "1", "2"])
REGEXES = st.sampled_from(
    [
        r".*q",
        r".*layers\.\d\..*",
        r".*(q|k_proj)",
        "^q",
        r"[01]\.q",
        "q|h",
        "q$",
        r".*\d",
        "all-linear",
    ]
)


@st.composite
def trees(draw, depth=4):
    """Modules in modules with Linears as leaves; the names often contain one another, and numbers stand anywhere."""
    names = draw(st.lists(PARTS, min_size=1, max_size=3, unique=True))
    is_leaf = [depth == 1 or draw(st.integers(0, 2)) == 0 for _ in names]
    return nn.ModuleDict(
        {
            n: nn.Linear(2, 2, bias=False) if leaf else draw(trees(depth - 1))
            for n, leaf in zip(names, is_leaf, strict=True)
        }
    )


@st.composite
def trees_and_settings(draw):
    """A tree, and the same fields for PEFT's LoraConfig and for ours; most entries are the end of some Linear's path."""
    tree = draw(trees())
    paths = [
        name.split(".") for name, module in tree.named_modules() if isinstance(module, nn.Linear)
    ]
    ends = st.sampled_from([".".join(path[i:]) for path in paths for i in range(len(path))])
    entries = st.one_of(ends, ends, ends, ends, PARTS)
    regexes = st.one_of(ends, ends, REGEXES)
    fields = {
        "target_modules": draw(
            st.one_of(*[st.lists(entries, min_size=1, max_size=4)] * 3, REGEXES)
        ),
        "exclude_modules": draw(
            st.one_of(st.just([]), st.just([]), st.lists(entries, max_size=2), regexes)
        ),
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(st.integers(1, 9)),
        "use_rslora": draw(st.booleans()),
        "rank_pattern": draw(st.dictionaries(regexes, st.integers(1, 9), max_size=3)),
        "alpha_pattern": draw(st.dictionaries(regexes, st.integers(1, 9), max_size=3)),
    }
    if not isinstance(fields["target_modules"], str):
        fields["layers_to_transform"] = draw(
            st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(0, 3), max_size=3))
        )
        if fields["layers_to_transform"] not in (None, []):
            fields["layers_pattern"] = draw(
                st.one_of(st.none(), PARTS, st.lists(PARTS, max_size=2))
            )
    return tree, fields


def as_peft_does(model, fields):
    """{path: (r, alpha, scaling)} of the adapters that PEFT puts in, or None where it refuses."""
    from peft import LoraConfig as Theirs
    from peft import inject_adapter_in_model

    model = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(Theirs(**fields), model)
    except ValueError:
        return None
    return {
        name: (module.r["default"], module.lora_alpha["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@settings(max_examples=100)
@given(trees_and_settings())
def test_the_same_modules_get_the_same_rank_and_alpha_as_in_peft(case):
    """Our strictness aside: PEFT lets entries pass that match nothing, and takes an lm_head for any other Linear.

    PEFT spells "all-linear" out into a list of paths, so a Linear ``q`` makes it choose ``part.q`` too, whatever that is;
    here a Linear is what it says.
    """
    tree, fields = case
    if fields["target_modules"] == "all-linear":
        linears = [name for name, module in tree.named_modules() if isinstance(module, nn.Linear)]
        assume(
            not any(
                name.endswith(f".{linear}")
                for name, _ in tree.named_modules()
                for linear in linears
            )
        )
        fields["exclude_modules"] = ["lm_head"] if "lm_head" in tree else fields["exclude_modules"]
    wanted = as_peft_does(tree, fields)
    config = LoraConfig(**fields)
    chosen = [site.path for site in sites_of(tree) if pattern_for(site, config)]
    if all(isinstance(tree.get_submodule(name), nn.Linear) for name in chosen) and chosen:
        assert {name: config.rank_and_alpha(name) for name in chosen} == {
            n: found[:2] for n, found in wanted.items()
        }
    else:
        assert wanted is None
    refused = ""
    try:
        inject(tree, config)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert wanted is None or re.search("no module (that gets an adapter )?matches", refused)
    else:
        assert {name: (la.r, la.lora_alpha, la.scaling) for name, la in lora_layers(tree)} == wanted


def test_a_pattern_that_matches_no_adapter_is_a_typo():
    for field in ("rank_pattern", "alpha_pattern"):
        with pytest.raises(
            ValueError, match=f"{field}: no module that gets an adapter matches 'part'"
        ):
            inject(
                Model(nn.Linear(4, 4)), LoraConfig(target_modules=["fine"], **{field: {"part": 2}})
            )


def test_all_linear_as_an_exclusion_is_a_regular_expression_as_in_peft_and_matches_nothing():
    with pytest.raises(ValueError, match="exclude_modules: no module matches 'all-linear'"):
        inject(
            Model(nn.Linear(4, 4)),
            LoraConfig(target_modules=["fine"], exclude_modules="all-linear"),
        )


def test_the_report_shows_each_rank():
    model = nn.ModuleDict({"layers": nn.ModuleList([Model(nn.Linear(4, 4)) for _ in range(3)])})
    config = LoraConfig(
        r=2,
        target_modules=["fine"],
        layers_to_transform=[0, 2],
        layers_pattern="layers",
        rank_pattern={"0.fine": 4},
    )
    report = inject(model, config)
    assert [(match.name, match.r) for match in report.chosen] == [
        ("layers.0.fine", 4),
        ("layers.2.fine", 2),
    ]
    assert (
        report.trainable
        == sum(p.numel() for p in model.parameters() if p.requires_grad)
        == (4 + 2) * 8
    )


def test_the_report_says_where_a_rank_is_more_than_a_matrix_can_have():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    shown = str(explain_match(model, LoraConfig(r=3, target_modules=["0", "1"])))
    assert "r=3 is above min(in, out) = 2 of 1: the update cannot" in shown
    assert "more than the rank" not in str(
        explain_match(model, LoraConfig(r=2, target_modules=["0", "1"]))
    )
