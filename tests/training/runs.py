"""Small runs for the tests of training: a task, the shipped base with an adapter, its bits."""

import torch

import minilora
from minilora import LoraConfig, inject, train
from minilora.lora.layer import lora_layers
from minilora.training.batches import encode_all, pad
from minilora.training.data import naval_log

TASK = naval_log(40, 12)
# for the error of the logits
IDS = pad(encode_all(minilora.load_base().tokenizer, TASK.train[:8], 512)).ids
QUICK = {"batch_size": 4, "progress": False, "validate_every": 0}


def adapted(dropout=0.0, seed=0):
    """The shipped base with a new adapter."""
    torch.manual_seed(seed)
    model = minilora.load_base()
    inject(model, LoraConfig(r=4, lora_dropout=dropout))
    return model


def filled(dropout=0.0):
    """The same with a B that is not zero, so that A and the dropout have an effect."""
    model = adapted(dropout)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    return model


def trained_bits(model):
    """Copies of all that trains, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def equal(a, b):
    """Equal names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def parts_of(model, **settings):
    """One step: (rows, whether packed, whether under autocast) of each part, and the record."""
    seen = []

    def note(decoder, args):
        seen.append((len(args[0]), args[1] is not None, torch.is_autocast_enabled("cpu")))

    model.model.register_forward_pre_hook(note)
    record = train(model, TASK, **{**QUICK, "batch_size": 8, "steps": 1} | settings).steps[0]
    return seen, record
