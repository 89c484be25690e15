"""What each contestant of ``serving.py`` does: adapters on disk, a pass, a batch of requests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

import minilora
from minilora.formats import load_low_rank
from minilora.lora import AdapterSwitch
from minilora.lora.layer import lora_layers
from minilora.model.cache import KVCache
from minilora.serving import Engine

from .generation import SHIPPED


def make_adapters(count: int, root: Path) -> list[Path]:
    """So many different adapters on disk."""
    model = minilora.load_base()
    minilora.inject(model, minilora.LoraConfig(r=8))
    folders = []
    for number in range(count):
        torch.manual_seed(number)
        for _, layer in lora_layers(model):
            layer.reset_parameters()
            nn.init.normal_(layer.lora_B, std=0.05)
        folders.append(minilora.save_adapter(model, root / str(number)))
    return folders


def peft_model(folders: list[Path]) -> Any:
    """transformers' model of the shipped base with these adapters, by number."""
    model = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(folders[0]), adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=str(number))
    return model.eval()


def our_pass(model: Any, ids: Tensor, past: Tensor | None) -> Callable[[], Tensor]:
    """A pass of a Llama over ids behind a past, again and again."""
    if past is None:
        return lambda: model.next_logits(ids, None, KVCache(multiple=16))
    cache = KVCache(multiple=16)
    model.next_logits(past, None, cache)
    lengths = list(cache.lengths)

    def run() -> Tensor:
        cache.lengths[:] = lengths
        return model.next_logits(ids, None, cache)

    return run


def peft_pass(
    model: Any, ids: Tensor, past: Tensor | None, names: list[str]
) -> Callable[[], Tensor]:
    """The same of PEFT's mixed batch."""
    more = {"adapter_names": names, "logits_to_keep": 1, "use_cache": True}
    if past is None:
        return lambda: model(input_ids=ids, **more).logits[:, -1]
    cache = model(input_ids=past, **more).past_key_values

    def run() -> Tensor:
        logits = model(input_ids=ids, past_key_values=cache, **more).logits[:, -1]
        cache.crop(-ids.shape[1])  # forget the token again
        return logits

    return run


def asked(count: int) -> list[tuple[list[int], int, str]]:
    """Requests: prompt ids, new tokens, adapter."""
    draw = random.Random(1)
    return [
        ([draw.randrange(3, 1500) for _ in range(draw.randint(8, 64))], draw.randint(8, 64), str(n))
        for n in range(count)
    ]


def by_engine(engine: Engine, requests: list[Any]) -> list[list[int]]:
    """All at once; the engine has as many slots as it has."""
    answers = [
        engine.submit(prompt, name, max_new_tokens=new, ends=())
        for number, (prompt, new, name) in enumerate(requests)
    ]
    while engine.step():
        pass
    return [answer.ids for answer in answers]


def by_generate(model: Any, switch: AdapterSwitch, requests: list[Any]) -> list[list[int]]:
    """One after the other by ``generate``, the adapter switched before each."""
    answers = []
    for prompt, new, name in requests:
        switch.to(name)
        out = model.generate(torch.tensor([prompt]), new)
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def switchable(folders: list[Path]) -> tuple[Any, AdapterSwitch]:
    """A model, and a switch between these adapters by number."""
    model = minilora.load_adapter(minilora.load_base(), folders[0])
    parts = {str(number): load_low_rank(folder) for number, folder in enumerate(folders)}
    return model.eval(), AdapterSwitch(model, parts)


def by_padding(model: Any, requests: list[Any], names: bool) -> list[list[int]]:
    """One batch, padded on the left, until the last row is done."""
    longest, new = max(len(p) for p, *_ in requests), max(n for _, n, _ in requests)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p, *_ in requests])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, *_ in requests])
    more = {"adapter_names": [name for *_, name in requests]} if names else {}
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0,
        eos_token_id=None, **more,
    )  # fmt: skip
    return [
        row[longest : longest + n].tolist() for row, (_, n, _) in zip(out, requests, strict=True)
    ]


def spent(run: Callable[[], Any]) -> float:
    """Seconds of processor time."""
    before = time.thread_time()
    run()
    return time.thread_time() - before
