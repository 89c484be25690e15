"""Adapters of the shipped base on disk, as after training: A random, B random, small."""

import torch
from torch import nn

import minilora
from minilora.lora.layer import lora_layers

LOG = "Log: Hull 90%, Fuel 12%, Oxygen 98%."


def adapted(seed, std=0.25, base=None, **config):
    """A base with an adapter whose B is filled."""
    torch.manual_seed(seed)
    model = minilora.load_base() if base is None else base
    settings = {"r": 4, "lora_alpha": 12, **config}
    minilora.inject(model, minilora.LoraConfig(**settings))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=std)
    return model


def make_adapter(folder, seed, **config):
    """The same, saved; returns the folder."""
    return minilora.save_adapter(adapted(seed, **config), folder)


def alone(folder, question, context=LOG, **settings):
    """What a model with nothing but this adapter answers."""
    model = minilora.load_base()
    if folder is not None:
        minilora.load_adapter(model, folder)
    return model.generate_text(question, context, **settings)
