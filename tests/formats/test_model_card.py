"""The card beside an adapter is one that huggingface_hub reads, and PEFT's own is left alone."""

import torch
from huggingface_hub import ModelCard

import minilora
from minilora import LoraConfig, inject, load_base, save_adapter

from ..lora.test_injection import fill
from .test_save_and_load import pair, saved

SCORES = {"Data": {"sha256": "ab12"}, "Scores": {"exact match": 0.97}, "Training": {}}


def test_the_card_says_what_the_adapter_is_in_pefts_words(tmp_path):
    base = load_base()
    inject(base, LoraConfig(r=3, rank_pattern={"v_proj": 2}))
    save_adapter(base, tmp_path, card=SCORES)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model == base.name_or_path
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["lora", "minilora"]
    for line in ("- r: 3", '- rank_pattern: {"v_proj": 2}', "- target_modules: q_proj, v_proj"):
        assert f"\n{line}\n" in card.text
    assert "\n## Data\n\n- sha256: ab12\n\n## Scores\n\n- exact match: 0.97\n" in card.text
    assert "## Training" not in card.text
    assert "### Framework versions\n\n- minilora: " in card.text


def test_a_save_writes_its_own_card_anew_and_leaves_anothers(tmp_path):
    ours, folder = saved(tmp_path)
    card = folder / "README.md"
    first = card.read_text(encoding="utf-8")
    fill(ours)
    save_adapter(ours, folder, card=SCORES)
    assert "exact match" in card.read_text(encoding="utf-8")
    save_adapter(ours, folder)
    assert card.read_text(encoding="utf-8") == first
    for content in (b"# Mine\n", b"\xff\xfe"):
        card.write_bytes(content)
        save_adapter(ours, folder, card=SCORES)
        assert card.read_bytes() == content
    assert not list(folder.glob(".*"))


def test_a_base_without_a_name_and_a_name_with_quotes(tmp_path):
    ours, folder = saved(tmp_path)
    assert ModelCard.load(folder / "README.md").data.base_model is None
    ours.name_or_path = 'my "best": base\n# é'
    save_adapter(ours, folder)
    assert ModelCard.load(folder / "README.md").data.base_model == ours.name_or_path


def test_twenty_saves_of_equal_adapters_are_equal_bytes(tmp_path):
    """safetensors writes its metadata in random order: of three keys, most saves differed."""
    for number in range(20):
        torch.manual_seed(0)
        ours, _ = pair()
        inject(ours, LoraConfig(r=2))
        save_adapter(ours, tmp_path / str(number), card=SCORES)
    for file in ("README.md", "adapter_config.json", "adapter_model.safetensors"):
        assert len({(each / file).read_bytes() for each in tmp_path.iterdir()}) == 1, file


def test_only_what_peft_has_is_said_to_open_there(tmp_path):
    """A bottleneck's card sent people to PEFT, which has no such method."""
    ours = {"bottleneck": minilora.BottleneckConfig(), "bitfit": minilora.BitFitConfig()}
    for name, config in {**ours, "vera": minilora.VeraConfig(r=4)}.items():
        inject(base := load_base(), config)
        save_adapter(base, tmp_path / name)
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.library_name == ("minilora" if name in ours else "peft")
        assert ("PeftModel" in card.text) == (name not in ours)
