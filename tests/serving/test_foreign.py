"""The bank's rows in transformers' models: one padded batch, through inject's own matching."""

import copy

import pytest
import torch
import transformers
from torch import nn

import minilora
from minilora.lora.layer import lora_layers
from minilora.serving import AdapterBank

from ..tolerance import assert_as_close, exactly

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 37}
KINDS = {
    "gpt2": (  # Conv1D
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=37, n_positions=32),
        (["c_attn"], ["c_fc", "c_proj"]),
    ),
    "opt": (  # its MLP sees (rows · time, hidden)
        transformers.OPTConfig(
            **SMALL, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32
        ),
        (["q_proj", "v_proj"], ["fc1", "fc2"]),
    ),
    "llama": (
        transformers.LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=1),
        (["q_proj", "v_proj"], "all-linear"),
    ),
}


def adapted(base, seed, targets):
    """A copy of the base with a filled adapter."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    minilora.inject(model, minilora.LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.5)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_of_a_padded_batch_is_that_row_alone(kind, tmp_path):
    config, targets = KINDS[kind]
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    bank, solo = AdapterBank(base, max_rank=4), {None: base}
    for number, each in enumerate(targets):
        solo[str(number)] = adapted(base, number, each)
        bank.load(str(number), minilora.save_adapter(solo[str(number)], tmp_path / str(number)))
    choices = ["0", None, "1", "0"]
    ids = torch.randint(2, 37, (4, 7))
    mask = torch.ones_like(ids)
    mask[2, :3] = 0  # padded on the left
    with bank.batch(choices) as model, torch.no_grad():
        mixed = model(input_ids=ids, attention_mask=mask).logits
        beams = model.generate(
            input_ids=ids, attention_mask=mask, num_beams=3, max_new_tokens=4, do_sample=False
        )
    for row, choice in enumerate(choices):
        own, only = solo[choice], {"attention_mask": mask[row : row + 1]}
        with torch.no_grad():
            apart = own(ids[row : row + 1], **only).logits
            alone = own.generate(
                ids[row : row + 1], num_beams=3, max_new_tokens=4, do_sample=False, **only
            )
        seen = mask[row].bool()
        truth = exactly(own, ids[row : row + 1], **only)
        assert_as_close(mixed[row][seen], apart[0][seen], truth[0][seen])
        assert torch.equal(beams[row][: alone.shape[1]], alone[0])
    with pytest.raises(ValueError, match="for another model: with bank.batch"):
        bank.generate([("0", "Status?")])
