"""Mixtures of experts: all parameters and the active ones, beside the real modules."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from minilora.ledger import plan
from minilora.ledger.shapes import architecture

from .test_families import CLASSES, SMALL, linears, real, shapes

MIXTRAL = SMALL | {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4}
MIXTRAL |= {"num_experts_per_tok": 2}
QWEN = SMALL | {"num_key_value_heads": 2, "moe_intermediate_size": 40, "num_experts": 6}
QWEN |= {"num_experts_per_tok": 3}
QWEN2 = QWEN | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 56}
QWEN3 = QWEN | {"model_type": "qwen3_moe"}
MIXED = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
CONFIGS = {
    "mixtral": MIXTRAL,
    "mixtral, wide heads": MIXTRAL | {"head_dim": 24, "tie_word_embeddings": True},
    "qwen 2": QWEN2,
    "qwen 2, without biases": QWEN2 | {"qkv_bias": False},
    "qwen 2, some blocks dense": QWEN2 | MIXED,
    "qwen 3": QWEN3 | {"head_dim": 32},
    "qwen 3, biases, some blocks dense": QWEN3 | MIXED | {"attention_bias": True},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_linears_and_parameters_are_those_of_the_real_model(name):
    model, arch = real(CONFIGS[name]), architecture(CONFIGS[name])
    assert shapes(arch) == list(linears(model))
    assert arch.parameters == sum(p.numel() for p in model.parameters())
    unused = 0
    for path, module in model.named_modules():
        if path.endswith(".experts"):
            numbers = sum(parameter.numel() for parameter in module.parameters())
            count = CONFIGS[name].get("num_experts", CONFIGS[name].get("num_local_experts"))
            unused += numbers // count * (count - CONFIGS[name]["num_experts_per_tok"])
    assert unused > 0
    assert arch.active_parameters == arch.parameters - unused


def test_the_published_counts():
    """Mixtral-8x7B: 46.7 B, 12.9 B active (arXiv 2401.04088); Qwen3-30B-A3B: 30.5 B, 3.3 B."""
    mixtral = architecture(
        {
            **{"model_type": "mixtral", "vocab_size": 32_000, "hidden_size": 4096},
            **{"intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
        }
    )
    assert (mixtral.parameters, round(mixtral.active_parameters / 1e9, 1)) == (46_702_792_704, 12.9)
    qwen = architecture(
        {
            **{"model_type": "qwen3_moe", "vocab_size": 151_936, "hidden_size": 2048},
            **{"intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32},
            **{"num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768},
            **{"num_experts": 128, "num_experts_per_tok": 8},
        }
    )
    counts = [qwen.parameters / 1e9, qwen.active_parameters / 1e9]
    assert counts == pytest.approx([30.5, 3.3], abs=0.06)


@pytest.mark.parametrize("name", ["mixtral", "qwen 2", "qwen 3, biases, some blocks dense"])
def test_the_forward_flops_are_those_of_the_active_experts(name):
    """The plan leaves out the router and a shared expert's gate: they are added here."""
    config, tokens = CONFIGS[name], 32
    built = transformers.AutoConfig.for_model(**config, attn_implementation="eager")
    built._experts_implementation = "eager"
    model = getattr(transformers, CLASSES[config["model_type"]])(built).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randint(0, 80, (1, tokens)))
    planned = plan(config, method="full", batch=1, seq=tokens)
    left_out = [
        m.weight for n, m in model.named_modules() if n.endswith(("mlp.gate", "expert_gate"))
    ]
    products = 2 * tokens * sum(weight.numel() for weight in left_out)
    assert planned.flops_forward * tokens + products == counter.get_total_flops()
    assert planned.active < planned.parameters


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_can_be_planned(name, method):
    planned = plan(CONFIGS[name], method=method)
    assert all(size >= 0 for size in planned.bytes.values())
    assert plan(CONFIGS[name], method=method, seq=4096).total > planned.total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok=5 is more than all 4 experts"),
        ({"num_local_experts": None}, "the config lacks 'num_local_experts'"),
        ({"num_experts_per_tok": "2"}, "num_experts_per_tok must be a whole number"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        architecture(MIXTRAL | changes)
