"""Golden vectors of bottleneck adapters, from the ``adapters`` library.

    python -m venv other && other/bin/pip install adapters==1.3.0 safetensors
    other/bin/python tests/golden/make_bottleneck.py tests/golden/bottleneck.safetensors

``adapters`` 1.3.0 needs transformers 4.57.6, which cannot stand beside the version that the other
tests use; so its numbers are committed. For a small Llama and each kind: the adapter's tensors by
our names, the logits, and the gradient of the sum of the squared logits.
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

KINDS = {"houlsby": "double_seq_bn", "pfeiffer": "seq_bn", "parallel": "par_bn"}
SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}


def ours(name: str) -> str:
    """Our name of one of their Parameters."""
    name = name.replace("attention_adapters.adapters.a", "attention_adapter")
    name = name.replace("output_adapters.adapters.a", "output_adapter")
    return name.replace("adapter_down.0", "adapter_down")


def main(path: str) -> None:
    """Write the file."""
    import adapters  # here, since the tests that collect this file do without it

    ids = torch.arange(12).reshape(2, 6)
    tensors = {"ids": ids}
    for kind, name in KINDS.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
        base = {key: value.clone() for key, value in model.state_dict().items()}
        tensors |= {f"base.{key}": value for key, value in base.items()}
        adapters.init(model)
        model.add_adapter("a", config=adapters.AdapterConfig.load(name, reduction_factor=4))
        model.train_adapter("a")
        model.eval()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        trained = {n: p for n, p in trained.items() if "adapters.a." in n}
        for parameter in trained.values():
            torch.nn.init.normal_(parameter, std=0.3)
        logits = model(ids).logits
        logits.square().sum().backward()
        tensors[f"{kind}.logits"] = logits.detach()
        for key, parameter in trained.items():
            tensors[f"{kind}.{ours(key)}"] = parameter.detach().clone()
            tensors[f"{kind}.grad.{ours(key)}"] = parameter.grad.clone()
    save_file(tensors, path)


if __name__ == "__main__":
    main(sys.argv[1])
