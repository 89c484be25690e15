"""Teach it or show it? Facts and manners in the weights against facts and examples in the prompt.

    python -m benchmarks.facts [--seeds 0 1 2] [--steps 150]
    python -m benchmarks.facts --llm smollm2 [--llm-steps 60]    # also examples in its prompt

Three questions:

    facts           invented readings, taught without a log: recall, another wording, and then a log
                    with *new* values, which the untrained base simply reads
    hallucination   a question about a system that the log does not hold: how many answers invent a
                    reading, before and after a fine-tune
    in context      k solved examples in the prompt against an adapter: exact answers, prompt
                    tokens, processor seconds a request, and when the training has paid

``smollm2`` is the folder that ``python -m minilora.recipes.smollm2`` makes. Seconds are the
process's processor time, as other work on a machine does not change it much; take one thread for
ratios that hold. Rates are untuned, those of lesson 18. The larger model's ways to ask are kept as
each is measured, and a call that was stopped goes on; ``--again 1`` measures anew.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

import minilora
from minilora import Example, LoraConfig, data
from minilora.training.evaluation import answers, share_right

from .common import Row, kept_rows, options, save
from .matrix import prose_bits

TAUGHT, HELD_OUT = (0, 1, 2), 3  # wordings of the question that training shows, and another
METHODS = {"rank 1": (1, 2e-2), "rank 8": (8, 1e-2)}
QUIET: dict[str, Any] = {"validate_every": 0, "progress": False}
Facts = Mapping[str, str]


def invented(count: int, seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Readings of systems that do not exist, and other readings of the same."""
    vocabulary = minilora.load_base().tokenizer.raw.get_vocab()
    pieces = [re.fullmatch(r"Ġ([a-z]{3,})", piece) for piece in vocabulary]
    draw, words = random.Random(seed), sorted(piece[1] for piece in pieces if piece)
    facts = {word: str(draw.randint(0, 100)) for word in draw.sample(words, count)}
    return facts, {w: str((int(v) + draw.randint(10, 90)) % 101) for w, v in facts.items()}


def question(word: str, value: str, wording: int, shown: str | None = None) -> Example:
    """A question and the base's way to answer it; with ``shown``, a log that holds that value."""
    log = "" if shown is None else data.log_line([(word, shown)])
    return Example(data.ASK_ONE[wording].format(name=word), data.polite([(word, value)]), log)


def adapter_on(
    examples: Sequence[Example], r: int, rate: float, steps: int, seed: int, targets: Any
) -> Any:
    """The shipped base with an adapter that was trained on these."""
    torch.manual_seed(seed)
    model = minilora.load_base()
    minilora.inject(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets))
    minilora.train(model, examples, steps=steps, batch_size=16, lr=rate, seed=seed, **QUIET)
    return model.eval()


def last_number(answer: str) -> str:
    """The last number of an answer; empty where it has none."""
    return (re.findall(r"\d+", answer) or [""])[-1]


def numbers_in(model: Any, asked: Sequence[Example]) -> list[str]:
    """Each answer's last number."""
    return [last_number(text) for text in answers(model, asked)]


def equal_share(values: Sequence[str], expected: Sequence[str]) -> float:
    """How many are as expected, 0 to 1."""
    return statistics.mean(one == other for one, other in zip(values, expected, strict=True))


def probe(model: Any, facts: Facts, changed: Facts, prose: float) -> Row:
    """Recall, reading, and what else the fine-tune did."""
    old, new = list(facts.values()), list(changed.values())
    contradicted = [question(w, changed[w], HELD_OUT, changed[w]) for w in facts]
    values = numbers_in(model, contradicted)
    bare = [question(w, v, HELD_OUT) for w, v in facts.items()]
    shown, taught = (
        statistics.mean(len(prompt_ids(model, e.as_messages()[:1])) for e in asked)
        for asked in (contradicted, bare)
    )
    same = [question(w, v, TAUGHT[0]) for w, v in facts.items()]  # the word stands first
    return {
        "recall": equal_share(numbers_in(model, same), old),
        "other_wording": equal_share(numbers_in(model, bare), old),
        "new_log": equal_share(values, new),
        "taught_value": equal_share(values, old),
        "ships_logs": minilora.exact_match(model, data.polite_log(1, 60, seed=99).valid),
        "forgot": prose_bits(model) - prose,
        "tokens_shown": shown,
        "tokens_taught": taught,
    }


def prompt_ids(model: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """A prompt's tokens."""
    return model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)


def missing_questions(count: int) -> list[Example]:
    """Logs of real systems, each with a question about one that the log does not hold."""
    draw, asked = random.Random(7), []
    for example in data.naval_log(1, count, seed=98).valid:
        absent = [name for name in data.SYSTEMS if name not in example.input]
        wording = data.ASK_ONE[HELD_OUT].format(name=draw.choice(absent))
        asked.append(Example(wording, "", example.input))
    return asked


def inventing_share(model: Any, asked: Sequence[Example]) -> float:
    """How many answers hold a number, though the log has none for what was asked."""
    return statistics.mean(bool(last_number(text)) for text in answers(model, asked))


def facts_rows(given: Any) -> list[Row]:
    """Every number of facts, method and seed; then hallucination."""
    rows: list[Row] = []
    base = minilora.load_base()
    prose, missing = prose_bits(base), missing_questions(given.logs)
    for seed in given.seeds:
        for count in given.facts:
            facts, changed = invented(count, seed)
            setting = {"part": "facts", "facts": count, "seed": seed}
            rows.append({**setting, "method": "shown", **probe(base, facts, changed, prose)})
            train = [question(w, v, wording) for w, v in facts.items() for wording in TAUGHT]
            for name, (r, rate) in METHODS.items():
                model = adapter_on(train, r, rate, given.steps, seed, "all-linear")
                rows.append({**setting, "method": name, **probe(model, facts, changed, prose)})
                scores = {key: f"{rows[-1][key]:.0%}" for key in ("other_wording", "new_log")}
                print(f"seed {seed}  {count} facts  {name}  {scores}", flush=True)
        setting = {"part": "hallucination", "seed": seed}
        tuned = {"the base": base, f"{given.facts[-1]} facts, rank 8": model}
        for targets, name in ((["q_proj", "v_proj"], "q, v"), ("all-linear", "all")):
            logs = data.naval_log(400, 1, seed=seed).train
            rate = 1e-2 if name == "q, v" else 5e-3
            tuned[f"naval code, {name}"] = adapter_on(logs, 8, rate, given.steps, seed, targets)
        for name, each in tuned.items():
            rows.append({**setting, "method": name, "invents": inventing_share(each, missing)})
            print(f"seed {seed}  {name}  invents {rows[-1]['invents']:.0%}", flush=True)
    return rows


def context_rows(
    model: Any, name: str, task: Any, ks: Sequence[int], settings: Row, rows: Sequence[Row] = ()
) -> Iterator[list[Row]]:
    """k examples in the prompt, then an adapter without any: quality, tokens, seconds a request.

    Gives the rows so far after each way; those in ``rows`` are not measured again.
    """
    setting, rows = {"part": "in context", "model": name}, list(rows)
    done = {row["way"] for row in rows}
    for k in ks:
        way = f"{k} example{'s' * (k != 1)}"
        if way not in done:
            rows.append({**setting, "way": way, **request(model, task, k)})
            print(described(rows[-1]), flush=True)
            yield rows
    if "adapter" in done:
        return
    began = time.process_time()
    torch.manual_seed(0)
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=settings.pop("targets")))
    minilora.train(model, task.train, **settings, **QUIET)
    trained = time.process_time() - began
    minilora.merge(model.eval())
    row = {**setting, "way": "adapter", **request(model, task, 0), "training_seconds": trained}
    print(f"{described(row)}  after {trained:.0f} s")
    for each in rows:  # what the adapter saves a request, against the training
        saved = each["seconds"] - row["seconds"]
        each["pays_after_requests"] = trained / saved if saved > 0 else None
    yield [*rows, row]


def described(row: Row) -> str:
    """A way to ask, in one line."""
    return f"{row['model']}  {row['way']}  exact {row['exact']:.0%}  {row['seconds']:.2f} s"


def request(model: Any, task: Any, k: int) -> Row:
    """The held-out questions, one at a time, behind ``k`` solved examples as earlier turns."""
    turns = [message for example in task.train[:k] for message in example.as_messages()]
    texts, seconds, tokens = [], [], []
    for example in task.valid:
        messages = [*turns, *example.as_messages()[:1]]
        tokens.append(len(prompt_ids(model, messages)))
        began = time.process_time()
        texts.append(model.generate_texts([messages], 24)[0])
        seconds.append(time.process_time() - began)
    return {
        "exact": share_right(texts, task.valid),
        "prompt_tokens": statistics.mean(tokens),
        "seconds": statistics.median(seconds),
    }


def main() -> None:
    """The facts and the shipped base; with ``--llm`` the larger model's prompts alone."""
    lists: dict[str, Any] = {"seeds": [0, 1, 2], "facts": [48, 192], "k": [0, 1, 4, 8]}
    given = options(
        __doc__, **lists, steps=150, logs=60, llm="", llm_steps=60, llm_logs=30, again=0
    )
    task = data.naval_log(400, given.llm_logs, seed=0)
    if given.llm:
        how: Row = {"steps": given.llm_steps, "batch_size": 8, "lr": 2e-3}
        how["targets"] = ["q_proj", "v_proj"]
        model, name = minilora.load_base(given.llm), "SmolLM2-135M-Instruct"
        given.llm = name  # whose folder it was says nothing
        kept = [] if given.again else kept_rows("in_context", given)
        for rows in context_rows(model, name, task, given.k, how, kept):
            save("in_context", rows, given)
        return
    rows = facts_rows(given)
    how = {"steps": given.steps, "batch_size": 16, "lr": 5e-3, "targets": "all-linear"}
    for shown in context_rows(minilora.load_base(), "the shipped base", task, given.k, how):
        save("facts", rows + shown, given)


if __name__ == "__main__":
    main()
