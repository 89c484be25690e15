"""A live model's modules as sites: plain paths, sizes, the head, and why one is refused."""

import pytest
import torch
from torch import nn

import minilora
from minilora import LoraConfig, explain_match, inject
from minilora.lora.injection import adapter_layers
from minilora.lora.sites import output_head, sites_of

from ..test_foreign import make
from .test_injection import tiny


def with_part(part):
    """A model of one fine Linear and a part."""
    return nn.ModuleDict({"fine": nn.Linear(4, 4), "part": part})


def refused(model):
    """Why each module cannot have an adapter, by path."""
    return {site.path: site.refused for site in sites_of(model) if site.refused}


def test_every_module_but_the_model_itself_is_a_site_with_its_sizes():
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 5), nn.ReLU()))
    sites = {site.path: site for site in sites_of(model)}
    sizes = {path: (site.in_features, site.out_features) for path, site in sites.items()}
    assert sizes == {"0": (3, 2), "1": (0, 0), "1.0": (2, 5), "1.1": (0, 0)}
    assert [path for path, site in sites.items() if site.is_linear] == ["0", "1.0"]
    assert refused(model).keys() == {"1", "1.1"}


def test_three_kinds_of_linear_are_sites_of_their_own_kind():
    model, _, _ = make("GPT-2")
    sizes = {site.path: (site.in_features, site.out_features) for site in sites_of(model)}
    assert sizes["transformer.h.0.attn.c_attn"] == (16, 48), "a Conv1D's weight is (in, out)"
    packed = minilora.quantize_base(nn.Sequential(nn.Linear(64, 3)))
    assert [(site.in_features, site.out_features) for site in sites_of(packed)] == [(64, 3)]


@pytest.mark.parametrize("target", ["self_attn", "norm"])
def test_a_target_that_is_not_a_linear_is_refused(target):
    with pytest.raises(ValueError, match="only Linears and Embeddings can be adapted; write"):
        inject(tiny(), LoraConfig(target_modules=[target]))


@pytest.mark.parametrize(
    ("part", "target"),
    [(nn.MultiheadAttention(8, 2), "out_proj"), (nn.TransformerEncoderLayer(8, 2, 16), "linear1")],
)
def test_linears_whose_weight_is_read_without_calling_them_are_refused(part, target):
    """torch's fused attention never calls the module: an adapter there would never be used."""
    message = f"{target}, but {type(part).__name__} reads its weight without calling it"
    with pytest.raises(ValueError, match=message):
        inject(with_part(part), LoraConfig(target_modules=["fine", target]))


NORMS = [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]


@pytest.mark.parametrize("norm", NORMS)
def test_a_weight_that_is_computed_from_others_is_refused_and_listed_nowhere(norm):
    model = with_part(norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"matches part, but .*no plain floating-point weight"):
        inject(model, LoraConfig(target_modules=["part"]))
    report = inject(model, LoraConfig(target_modules=["fine"]))
    assert [match.name for match in report.matches] == ["fine"]


def test_a_quantized_or_integer_weight_is_refused():
    part = nn.Linear(4, 4)
    part.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="no plain floating-point weight"):
        inject(with_part(part), LoraConfig(target_modules=["part"]))


def test_a_tied_head_is_refused_and_an_untied_one_is_not():
    head = LoraConfig(target_modules=["lm_head"])
    message = "lm_head, whose weight is tied to model.embed_tokens.weight: .* untie it first"
    with pytest.raises(ValueError, match=message):
        inject(tiny(tie_word_embeddings=True), head)
    inject(model := tiny(tie_word_embeddings=False), head)
    assert [path for path, _ in adapter_layers(model)] == ["lm_head"]


def test_a_module_that_stands_in_two_places_is_refused():
    linear = nn.Linear(64, 3)
    for shared, stored in ((linear, "weight"), (minilora.NF4Linear.from_linear(linear), "packed")):
        model = nn.ModuleDict({"one": shared, "two": shared})
        with pytest.raises(ValueError, match=f"matches one, whose weight is tied to two.{stored}"):
            inject(model, LoraConfig(target_modules=["one"]))


class Names(nn.Module):
    """A model of transformers' kind: it says which module is its head."""

    def __init__(self, head):
        super().__init__()
        self.body, self.lm_head, self.other = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.head = head

    def get_output_embeddings(self):
        return getattr(self, self.head) if self.head else None


@pytest.mark.parametrize(("head", "name"), [("other", "other"), (None, "lm_head")])
def test_the_head_is_what_the_model_says_or_the_module_named_lm_head(head, name):
    model = Names(head)
    assert output_head(model) is getattr(model, name)
    assert [site.path for site in sites_of(model) if site.is_head] == [name]
    report = explain_match(model, LoraConfig(target_modules="all-linear"))
    assert name not in [match.name for match in report.chosen]
    assert len(report.chosen) == 2


def test_a_model_without_a_head_has_none():
    assert output_head(nn.Sequential(nn.Linear(2, 2))) is None
    assert not any(site.is_head for site in sites_of(nn.Sequential(nn.Linear(2, 2))))
