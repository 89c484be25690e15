"""An adapter's identity is what it computes; its stored form is one; bad shapes are told."""

import json

import pytest
import torch

from minilora.formats.base_fingerprint import Fingerprint
from minilora.hub.adapter import TENSORS, read_adapter
from minilora.tensor_files import read_tensors, write_tensors

from .adapters import BASE, make_adapter

A = "layers.0.q_proj.lora_A"
B = "layers.0.q_proj.lora_B"


def with_config(folder, change):
    """The same folder with another config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    return folder


def alphas(folder, pattern):
    """An adapter whose layer 0 has the α of the first pattern that fits: what it is, its scale."""
    adapter = read_adapter(with_config(folder, lambda c: {**c, "alpha_pattern": pattern}))
    return adapter, adapter.factors("layers.0.q_proj")[2]


def test_the_order_of_alphas_is_part_of_the_identity_where_it_counts(tmp_path):
    """The first key that fits counts, as in PEFT; elsewhere the order says nothing."""
    folder = make_adapter(tmp_path / "mine")
    one, scale = alphas(folder, {"0.q_proj": 2, "q_proj": 8})
    other, larger = alphas(folder, {"q_proj": 8, "0.q_proj": 2})
    assert (scale, larger) == (1, 4)
    assert one.content_id != other.content_id
    assert one.settings != other.settings
    apart = [alphas(folder, p)[0] for p in ({"0.q_proj": 2, "1.q_proj": 8},
                                            {"1.q_proj": 8, "0.q_proj": 2})]  # fmt: skip
    assert apart[0].content_id == apart[1].content_id
    assert apart[0].settings == apart[1].settings
    assert apart[0].files() == apart[1].files()
    assert one.files() != other.files()


def test_the_order_of_ranks_is_kept_only_where_it_counts(tmp_path):
    """The layers have rank 2; sorted, the second pattern would give layer 0 another."""
    folder = make_adapter(tmp_path / "mine")

    def stored(pattern):
        adapter = read_adapter(with_config(folder, lambda c: {**c, "rank_pattern": pattern}))
        return adapter.files()

    assert stored({"1.q_proj": 2, "0.q_proj": 2}) == stored({"0.q_proj": 2, "1.q_proj": 2})
    kept = json.loads(stored({"q_proj": 2, "0.q_proj": 8})["adapter_config.json"])
    assert list(kept["rank_pattern"]) == ["q_proj", "0.q_proj"]


def test_equal_adapters_are_equal_bytes_and_a_pattern_keeps_an_order_that_counts(tmp_path):
    """Keys and targets come in any order: PEFT writes a set."""
    one = make_adapter(tmp_path / "one", targets=("q_proj", "v_proj"))
    given = {"alpha_pattern": {"q_proj": 8, "0.q_proj": 2}}
    with_config(one, lambda config: {**config, **given})
    turned = make_adapter(tmp_path / "two", targets=("q_proj", "v_proj"))
    with_config(
        turned,
        lambda c: {**given, **dict(reversed(c.items())), "target_modules": ["v_proj", "q_proj"]},
    )
    files = read_adapter(one).files()
    assert files == read_adapter(turned).files()
    for config in (json.loads(files["adapter_config.json"]), copy_inside(files[TENSORS])):
        assert list(config["alpha_pattern"].items()) == [("q_proj", 8), ("0.q_proj", 2)]


def copy_inside(content):
    """The config in the metadata of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    return json.loads(header["__metadata__"]["minilora_config"])


def test_what_came_after_the_first_version_is_no_setting_where_it_says_nothing(tmp_path):
    """Or every adapter of that version would have another identity now."""
    folder = make_adapter(tmp_path / "mine")
    plain = read_adapter(folder)
    more = {"bias": "none", "use_dora": False, "modules_to_save": None, "task_type": "CAUSAL_LM"}
    silent = read_adapter(with_config(folder, lambda config: {**config, **more}))
    assert silent.content_id == plain.content_id
    assert not more.keys() & silent.settings.keys()
    said = {"r": 2, "lora_alpha": 4, "lora_dropout": 0, "use_rslora": False}
    assert plain.settings == {**plain.settings, **said, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("tensors", "reasons"),
    {
        "A scalar": ({A: torch.ones(())}, [f"{A} has shape (), expected (2, 1)"]),
        "A a row": ({A: torch.ones(8)}, [f"{A} has shape (8,), expected (2, 8)"]),
        "A three": ({A: torch.ones(2, 3, 8)}, [f"{A} has shape (2, 3, 8), expected (2, 8)"]),
        "B scalar": ({B: torch.ones(())}, [f"{B} has shape (), expected (1, 2)"]),
        "B a row": ({B: torch.ones(8)}, [f"{B} has shape (8,), expected (8, 2)"]),
        "ranks": ({B: torch.ones(8, 3)}, [f"{B} has shape (8, 3), expected (8, 2)"]),
        "no A": ({A: None}, [f"{A} is missing"]),
        "no B": ({B: None}, [f"{B} is missing"]),
    }.values(),
    ids=["A scalar", "A a row", "A three", "B scalar", "B a row", "ranks", "no A", "no B"],
)
def test_misshapen_factors_are_told(tmp_path, tensors, reasons):
    folder = make_adapter(tmp_path / "mine")
    held = read_tensors(folder / TENSORS)
    for name, tensor in tensors.items():
        held[f"base_model.model.{name}.weight"] = tensor
    write_tensors(folder / TENSORS, {n: t for n, t in held.items() if t is not None})
    with pytest.raises(ValueError, match="holds no adapter that can be trusted") as error:
        read_adapter(folder)
    assert str(error.value).partition("trusted: ")[2] == "; ".join(reasons)


def test_a_base_that_the_file_contradicts_is_refused(tmp_path):
    """It is for files that do not say what they were trained on."""
    folder, said = make_adapter(tmp_path / "mine"), Fingerprint(**BASE)
    assert read_adapter(folder).base == read_adapter(folder, said).base == said
    with pytest.raises(ValueError, match=r"mine was trained on Fingerprint\(.*leave out base"):
        read_adapter(folder, Fingerprint("c" * 16, BASE["tensors"]))
    silent = make_adapter(tmp_path / "peft", base=None)
    assert read_adapter(silent).base is None
    assert read_adapter(silent, said).base == said
