"""A Llama that answers in a millisecond, with the shipped tokenizer; adapters for it; solo runs."""

import tempfile

import torch
from torch import nn

import minilora
from minilora.serving import AdapterBank, Engine

from .adapters import make_adapter

TOKENIZER = minilora.load_base().tokenizer


def small_base():
    """Random, far from its initialisation, so that answers differ."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}
    model = minilora.Llama(minilora.LlamaConfig(vocab_size=1536, **sizes, **heads))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    model.tokenizer = TOKENIZER
    return model.eval()


BASE = small_base()


def small_adapters(root):
    """{name: folder} of five; ranks and targets differ."""
    targets = [["q_proj", "v_proj"], "all-linear", ["o_proj", "up_proj"], ["down_proj"], ["k_proj"]]
    return {
        name: make_adapter(
            root / name, seed, base=small_base(), std=0.5, r=1 + seed, target_modules=targets[seed]
        )
        for seed, name in enumerate("abcde")
    }


FOLDERS = small_adapters(__import__("pathlib").Path(tempfile.mkdtemp(prefix="small_adapters_")))


def small_bank(names="abc", **settings):
    """A bank of the small base."""
    made = AdapterBank(small_base(), max_rank=16, **settings)
    for name in names:
        made.load(name, FOLDERS[name])
    return made


def recorded(engine):
    """What each answer's row got, step by step: {answer: [logits]}."""
    log, take = {}, engine.batch.take

    def watched(first, logits):
        for slot, row in zip(engine.batch.running[first:], logits, strict=True):
            log.setdefault(slot.answer, []).append(row.clone())
        take(first, logits)

    engine.batch.take = watched
    return log


def finish(engine):
    """Step until nothing is left."""
    while engine.step():
        pass


ARCHIVE = AdapterBank(small_base(), max_rank=16)  # every adapter under its content
CONTENTS = {}
for _folder in FOLDERS.values():
    _content = ARCHIVE.reader.read(_folder, any_base=False)[0]
    ARCHIVE.load(_content, _folder)
    CONTENTS[_content] = _folder


def solo(answer):
    """The same request alone, in an engine of its own, with the adapters that it got: (answer,
    logits)."""
    engine = Engine(ARCHIVE, slots=2, prefill_tokens=answer.request_chunk)
    log, request = recorded(engine), answer.request
    sampling = request.sampling
    alone = engine.submit(
        list(request.prompt),
        list(answer.key) or None,
        stop=request.stops,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )
    finish(engine)
    return alone, log[alone]


def generated(answer):
    """The new tokens of ``Llama.generate`` with nothing but this answer's adapter."""
    model, sampling = small_base(), answer.request.sampling
    for content, weight in answer.key:
        assert weight == 1.0
        minilora.load_adapter(model, CONTENTS[content])
    prompt = torch.tensor([answer.request.prompt])
    out = model.generate(
        prompt,
        sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        eos_id=sampling.ends,
    )
    return model, out[0, prompt.shape[1] :].tolist()
