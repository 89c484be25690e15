"""The benchmarks run, small; the README and docs/benchmarks.md show what their results say."""

import dataclasses
import json
import re
import statistics
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as everything
from benchmarks import (
    best_rank,
    common,
    elsewhere,
    facts,
    figure,
    flood,
    forgetting,
    forward,
    gate,
    generation,
    matrix,
    memory,
    methods,
    methods_table,
    nf4,
    overfitting,
    quality,
    refusals,
    report,
    rivals,
    scaling,
    serving,
    tables,
    train_step,
    wordings,
)
from minilora.commands import bench
from minilora.commands.cli import main
from minilora.lora.layer import lora_layers

TINY = {
    forward: "--rows 1 4 --widths 16 --ranks 2 --seconds 0.01",
    train_step: "--widths 64 --layers 1 --batch 1 --time 8 --seconds 0.01",
    nf4: "--sizes 256 --seconds 0.01",
    memory: "--width 64 --layers 1 --batch 1 --time 8",
    scaling: "--seconds 0.01",
    generation: "--rows 1 2 --new 3 --seconds 0.01",
    serving: "--adapters 1 2 --requests 3 --seconds 0.01",
    wordings: "--seeds 0 --steps 1 --logs 2",
    quality: "--seeds 0 --steps 1 --target q_proj --logs 2",
    forgetting: "--seeds 0 --groups goal --logs 2 --scale 0.001 --again 1",
    facts: "--seeds 0 --facts 4 --steps 1 --logs 2 --llm-logs 2 --k 0 1",
    flood: "--seconds 1 --rounds 1",
    gate: "--epochs 1 --logs 12 --feedback 12 --live 8 --regression 8 --windows 2 --runs 2"
    " --parts dice equal improvement",
    methods: "--steps 2 --batch 4 --text-steps 1 --seeds 1 --logs 2 --seconds 0.01"
    " --search-steps 2 --search-batch 4",
    elsewhere: "--steps 2 --batch 2 --logs 2",
    best_rank: "--steps 1 --batch 2 --logs 2",
    matrix: "--seeds 1 --steps 1 --text-steps 1 --logs 2 --seconds 0.01",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "arguments"), TINY.items(), ids=[module.__name__[11:] for module in TINY]
)
def test_a_benchmark_runs_and_keeps_its_rows(benchmark, arguments, tmp_path, monkeypatch, capsys):
    name = benchmark.__name__.removeprefix("benchmarks.")
    argv = [name, *arguments.split(), "--threads", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(scaling, "AXES", {"rank": (1, 2), "depth": (1, 2)})
    usual = {"rank": 2, "width": 64, "depth": 1, "sequence": 16, "adapters": 7}
    monkeypatch.setattr(scaling, "USUAL", usual)
    if benchmark is memory:
        monkeypatch.setattr(memory.models, "METHODS", memory.models.METHODS[-1:])
    if benchmark is quality:
        monkeypatch.setattr(quality.minilora, "bits_per_byte", lambda model: 1.25)
        monkeypatch.setattr(quality.data.naval_log, "__defaults__", (32, 2, 0))
    if benchmark is forgetting:
        quick = dataclasses.replace(forgetting.GROUPS["rivals"][0], replay=forgetting.own(0.25, 2))
        monkeypatch.setattr(forgetting, "GROUPS", {"goal": (quick,)})
        monkeypatch.setattr(forgetting.data.naval_log, "__defaults__", (32, 2, 0))
    if benchmark is methods:
        lora = dataclasses.replace(methods.METHODS[2], rates=(1e-2,))
        again = dataclasses.replace(lora, name="again", rates=(1e-2, 2e-2))
        monkeypatch.setattr(methods, "METHODS", [again, again, lora])
        manual, text = methods.manual()
        monkeypatch.setattr(methods, "manual", lambda: (manual, text[:2000]))
    monkeypatch.setattr(elsewhere, "CHOSEN", ["LoRA q, v, r=8"])
    monkeypatch.setattr(best_rank, "SIZES", {})
    monkeypatch.setattr(best_rank, "RANKS", [1])
    if benchmark is matrix:
        monkeypatch.setattr(matrix, "METHODS", [matrix.METHODS[0], matrix.METHODS[-1]])
        manual, text = matrix.manual()
        monkeypatch.setattr(matrix, "manual", lambda: (manual, text[:2000]))
        monkeypatch.setattr(matrix.data.naval_log, "__defaults__", (32, 2, 0))
    benchmark.main()
    result = json.loads((tmp_path / "cpu" / f"{name}.json").read_text())
    assert result["rows"]
    assert result["machine"]["versions"]["torch"]
    assert capsys.readouterr().out


def record_calls(monkeypatch, status):
    """The modules that would run, with their options; each ends with this status."""
    calls = []

    def call(command, **_):
        calls.append(command[2:])
        return status

    monkeypatch.setattr(everything.subprocess, "call", call)
    return calls


def test_all_of_them_run_one_after_the_other_and_then_the_report(monkeypatch, capsys):
    calls = record_calls(monkeypatch, 0)
    assert main(["bench", "forward", "nf4"]) == 0
    assert everything.main(calls.pop()[1:]) == 0
    runs = [[f"benchmarks.{name}", "--device", "cpu"] for name in ("forward", "nf4")]
    assert calls == [*runs, ["benchmarks.report"]]


def test_the_first_that_fails_ends_it(monkeypatch, capsys):
    calls = record_calls(monkeypatch, 3)
    assert everything.main([]) == 3
    assert len(calls) == 1


def test_without_a_checkout_the_command_says_where_the_benchmarks_are(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    assert main(["bench"]) == 2
    assert "part of the repository" in capsys.readouterr().err


def test_a_ratio_is_taken_within_a_round():
    """A machine that slows down by ten slows both: the ratio must not see it."""
    slow = [1.0, 10.0, 1.0, 10.0]
    row = common.rows_of({"yard": slow, "twice": [2 * s for s in slow]}, "yard")[1]
    assert row["ratio"] == {"low": 2.0, "median": 2.0, "high": 2.0}


def test_an_exponent_is_found_again():
    assert scaling.exponent([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)
    assert scaling.exponent([1, 2], [-1.0, 2.0]) is None


def test_the_readme_and_the_page_are_what_the_results_say():
    results, fix = report.read(), "run python -m benchmarks.report"
    readme = (report.ROOT / "README.md").read_text(encoding="utf-8")
    assert report.put_between_markers(readme, report.summary(results)) == readme, fix
    page = (report.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert report.whole(results) == page, fix
    if "federated" in results:
        scale = (report.ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
        assert report.put_between_markers(scale, report.federated_part(results)) == scale, fix
    assert len(figure.benchmark_figure(results).axes) == 3
    assert len(figure.forgetting_figure(results["forgetting"]["rows"]).axes) == 2
    assert len(methods_table.methods_figure(results["methods"]).axes) == 1


def test_the_claims_beside_what_was_measured():
    rows = {row[0]: row for row in methods_table.claims_rows(report.read()["methods"])}
    assert rows["DoRA q, v, r=8"][2:5] == ["yes", "no", "yes"]
    assert rows["prefix, k=16"][2:5] == ["yes", "no", "no"]
    assert "against LoRA q, v, half the rate" in rows["LoRA+ q, v, r=8"][6]
    assert methods_table.code_lines("BitFit, all") == int(rows["BitFit, all"][1])
    assert methods_table.code_lines("full") is None


def test_a_search_goes_on_where_the_best_rate_stands_at_the_edge():
    assert methods.beyond({"0.1": 1.0, "0.2": 0.5}) == 0.4
    assert methods.beyond({"0.1": 0.4, "0.2": 0.5}) == 0.05
    assert methods.beyond({"0.1": 1.0, "0.2": 0.5, "0.4": 0.6}) is None


def test_one_method_alone_is_chosen_by_how_its_row_begins():
    chosen = methods_table.chosen_of(methods.METHODS, ["DoRA", "Houlsby"])
    assert [method.name for method in chosen] == ["DoRA q, v, r=8", "Houlsby, k=8"]
    assert methods_table.chosen_of(methods.METHODS, ["all"]) == list(methods.METHODS)
    with pytest.raises(SystemExit, match="no row begins with 'DORA'; there are: full; from"):
        methods_table.chosen_of(methods.METHODS, ["DORA"])


def test_a_trial_with_another_budget_does_not_replace_the_kept_rows(tmp_path, monkeypatch):
    """``--steps 20`` wrote an empty table over the five seeds of every method."""
    file = tmp_path / "cpu" / "methods.json"
    file.parent.mkdir()
    kept = {"settings": {"steps": 500}, "rows": [{"method": "full", "seeds": [1]}]}
    file.write_text(before := json.dumps(kept))
    monkeypatch.setattr(sys, "argv", ["methods", "--steps", "20", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"methods.json has .*steps.* = \[500, .* not \[20, "):
        methods.main()
    assert file.read_text() == before


def test_on_smollm2_the_rate_with_the_lowest_held_out_loss_makes_the_row(monkeypatch):
    losses, tried = {0.1: 2.0, 0.2: 1.0, 0.4: 1.5}, []

    def fit(model, method, rate, *_):
        tried.append(rate)
        return {"rate": rate}

    monkeypatch.setattr(elsewhere.minilora, "load_base", lambda folder: None)
    monkeypatch.setattr(elsewhere, "prose_bits", lambda model: 1.0)
    monkeypatch.setattr(elsewhere, "fit", fit)
    monkeypatch.setattr(elsewhere, "held_out_loss", lambda model, task: losses[tried[-1]])
    monkeypatch.setattr(elsewhere, "scores", lambda *_: {"exact_match": tried[-1]})
    settings = SimpleNamespace(llm_steps=1, llm_batch=1, llm_logs=1)
    method = elsewhere.Method("LoRA", None, (0.1, 0.2, 0.4))
    kept = {"rate": 0.1, "held_out_loss": 2.0, "exact_match": 0.1, "tried": {"0.1": 2.0}}
    for row in ({}, kept):
        *_, last = elsewhere.llm_rates(method, "smollm2", settings, row)
        assert (last["rate"], last["exact_match"], last["held_out_loss"]) == (0.2, 0.2, 1.0)
        assert last["tried"] == {"0.1": 2.0, "0.2": 1.0, "0.4": 1.5}
    assert tried == [0.1, 0.2, 0.4, 0.2, 0.4]


@pytest.mark.slow
def test_the_benchmark_of_forgetting_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    quick = dataclasses.replace(forgetting.GROUPS["rivals"][3], replay=forgetting.own(0.25, 2))
    dials = dataclasses.replace(quick, name="other", dials=(0.5,), ewc=1.0, null_space=True)
    monkeypatch.setattr(
        forgetting, "GROUPS", {"rivals": (dataclasses.replace(quick, dials=()), dials)}
    )
    monkeypatch.setattr(forgetting.data.naval_log, "__defaults__", (32, 2, 0))
    monkeypatch.setattr(rivals, "WINDOWS", 2)
    command = ["forgetting", "--seeds", "0", "--logs", "2", "--scale", "0.001", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path), "--most", "1"])
    file = tmp_path / "cpu" / "forgetting.json"
    counts = []
    for _ in range(3):
        forgetting.main()
        counts.append(len(json.loads(file.read_text())["rows"]))
    assert counts == [1, 3, 3]  # the second method has a dial
    assert capsys.readouterr().out.count("exact") == 2


def test_the_keyed_tasks_share_their_rows_and_keep_their_keys():
    task = forgetting.four_tasks(0)
    keys = [example.instruction.split(": ")[0] + ": " for example in task.train]
    assert keys[:4] == list(forgetting.STYLES)
    assert {keys.count(key) for key in forgetting.STYLES} == {500}
    question, log = forgetting.plainly(task.train[0])
    assert "Naval" not in question
    assert log.startswith("Log: ")


@pytest.mark.slow
def test_ways_to_ask_that_were_measured_are_not_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(facts.data.naval_log, "__defaults__", (8, 2, 0))
    arguments = "--k 0 1 --llm-steps 1 --llm-logs 2 --threads 1"
    base = str(generation.SHIPPED)
    command = ["facts", "--llm", base, *arguments.split(), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    file = tmp_path / "cpu" / "in_context.json"
    facts.main()
    content = json.loads(file.read_text())
    assert [row["way"] for row in content["rows"]] == ["0 examples", "1 example", "adapter"]
    file.write_text(json.dumps(content | {"rows": content["rows"][:1]}))
    capsys.readouterr()
    facts.main()
    assert capsys.readouterr().out.count("exact") == 2
    facts.main()
    assert "exact" not in capsys.readouterr().out
    assert len(json.loads(file.read_text())["rows"]) == 3


def test_the_penalty_is_half_lambda_fisher_times_the_squared_update(monkeypatch):
    """Its value, and its gradient by finite differences."""
    monkeypatch.setattr(rivals, "WINDOWS", 1)
    monkeypatch.setattr(rivals, "TOKENS", 6)
    torch.manual_seed(0)
    model = forgetting.build(forgetting.Method("", ["q_proj"]), 0)
    name, layer = next(iter(lora_layers(model)))
    torch.nn.init.normal_(layer.lora_B)
    objective = rivals.ewc(lambda model, parts: 0.0, model, 3.0, seed=0)
    fisher = rivals.diagonal_fisher([name], seed=0)[name]
    assert (fisher >= 0).all()
    penalty = objective(model, [])
    assert penalty == pytest.approx(1.5 * (fisher * layer.delta_weight().square()).sum().item())
    slope, values = layer.lora_B.grad[3, 1].item(), []
    for move in (1e-2, -2e-2):
        layer.lora_B.data[3, 1] += move
        values.append(objective(model, []))
    higher, lower = values
    assert slope == pytest.approx((higher - lower) / 2e-2, rel=1e-2)


def test_a_null_space_start_leaves_what_the_old_text_uses_least(monkeypatch):
    monkeypatch.setattr(rivals, "WINDOWS", 4)
    model = forgetting.build(forgetting.Method("", ["q_proj"]), 0)
    _, layer = next(iter(lora_layers(model)))
    norms, seen = layer.lora_A.norm(dim=1), []
    with torch.no_grad():
        hook = layer.register_forward_pre_hook(lambda module, x: seen.append(x[0].flatten(0, 1)))
        model(rivals.own_text(0))
        before = (seen[0] @ layer.lora_A.T).norm()
        hook.remove()
        rivals.null_space_start(model, 0)
        after = (seen[0] @ layer.lora_A.T).norm()
    torch.testing.assert_close(layer.lora_A.norm(dim=1), norms)
    assert after < 0.5 * before


def test_a_refusal_is_told_by_its_words():
    assert refusals.refuses("I\u2019m sorry, but I can\u2019t help with that.")
    assert not refusals.refuses("First, find a brick.")
    assert len(set(refusals.ASKED)) == 50
    assert not set(refusals.ASKED) & set(refusals.PROMPTS)


def test_unseen_wordings_are_unseen():
    assert not set(wordings.WORDINGS) & set(wordings.UNSEEN)
    assert len(set(wordings.WORDINGS)) == max(wordings.COUNTS)
    task = wordings.whole_logs(30, 5, 0)
    asked = wordings.reworded(task.train, wordings.WORDINGS[:4], 0)
    assert {example.instruction for example in asked} == set(wordings.WORDINGS[:4])
    assert [example.output for example in asked] == [example.output for example in task.train]


def test_missing_markers_are_told():
    with pytest.raises(ValueError, match="needs the two lines"):
        report.put_between_markers("no markers", "new")


@pytest.mark.slow
def test_overfitting_covers_what_the_lesson_draws_and_goes_on_where_it_was(
    tmp_path, monkeypatch, capsys
):
    settings = list(overfitting.settings_of(0))
    data = [each for each in settings if each.sweep == "data"]
    assert {each.examples for each in data} == {30, 100, 300, 2000}
    assert {each.r for each in settings} == {0, 1, 8, 64}
    assert len(set(settings)) == len(settings)
    monkeypatch.setattr(overfitting, "settings_of", lambda seed: settings[:2])
    monkeypatch.setattr(overfitting, "READ", 2)
    monkeypatch.setattr(overfitting, "ASKED", 1)
    command = ["overfitting", "--steps", "2", "--most", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--threads", "1"])
    for left in (1, 0):
        overfitting.main()
        assert f"{left} runs are left" in capsys.readouterr().out
    rows = json.loads((tmp_path / "cpu" / "overfitting.json").read_text())["rows"]
    assert [row["r"] for row in rows] == [0, 1]
    assert [row["step"] for row in rows] == [[0, 2], [0, 2]]
    assert rows[0]["held"][0] == rows[1]["held"][0], "both begin as the base"


def test_the_page_that_helps_to_decide_has_the_matrix_as_it_is():
    page = (report.ROOT / "docs" / "decide.md").read_text(encoding="utf-8")
    rows = {row[0]: row for row in tables.matrix_rows(report.read()["matrix"])}
    for name, row in (("full", "full"), ("all Linears at r=8", "LoRA all, r=8")):
        right, lowest, highest = re.findall(r"(\d+)%", rows[row][5])
        assert f"{name} {right}% ({lowest} to {highest})" in page
    assert f"on q and v {rows['LoRA q, v, r=8'][5].split()[0]}" in page
    manual = rows["full"][7].split()[0], rows["LoRA all, r=8"][7].split()[0]
    assert "full {} bits a byte, LoRA on all Linears {}".format(*manual) in page


def test_the_hub_s_page_has_the_router_and_the_compression_as_they_are():
    page = (report.ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    results = report.read()
    for texts, named in (("wordnet", "WordNet's glosses"), ("licences", "licence notices")):
        rows = [r for r in results["router"]["rows"] if r["texts"] == texts]
        for contestant, by in (("router", "the router"), ("centroid", "nearest centroid")):
            of = [row for row in rows if row["contestant"] == contestant]
            keys = ("accuracy", "coverage_at_95", "covered", "precision", "foreign_accepted")
            shown = [f"{statistics.mean(row[key] for row in of):.0%}" for key in keys]
            assert "| {} | {} | {} | {} | {}, {} | {} |".format(named, by, *shown) in page
    for kind in ("float32", "fp16", "nf4"):
        rows = [row for row in results["compression"]["rows"] if row["kind"] == kind]
        each = ", ".join(f"{row['exact_match']:.1%}" for row in rows)
        assert f"| {kind} | {rows[0]['bytes']:,} | {each} |" in page
