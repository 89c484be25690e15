"""The planner page computes what ``plan`` computes, to the byte, in a real browser."""

import json
import random
import re
import shutil
import subprocess

import pytest

from minilora import LoraConfig, ledger
from minilora.ledger.estimate import DTYPES
from minilora.ledger.serving_costs import NOT_DECODERS
from minilora.plots.planner_page import planner_page, write_planner

from .. import profiles

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(
    BROWSER is None,
    reason="the planner page was not opened: chromium is missing (apt-get install chromium)",
)
CASES = profiles.of(dev=20, ci=200, thorough=4000)


def random_case(draw):
    """A model, targets by their short names, and everything else that the page lets one choose."""
    name = draw.choice(list(ledger.presets()))
    linears = [linear for linear in ledger.architecture(name).linears if not linear.tied]
    offered = sorted({linear.name.rpartition(".")[2] for linear in linears})
    return {
        "model": name,
        "method": draw.choice(["full", "lora", "qlora"]),  # the page has no others
        "r": draw.choice([1, 2, 3, 8, 16, 37, 64]),
        "targets": sorted(draw.sample(offered, draw.randint(1, len(offered)))),
        "batch": draw.randint(1, 32),
        "seq": draw.choice([1, 7, 128, 512, 2048, 8192]),
        "dtype": draw.choice(list(DTYPES)),
        "adapterDtype": draw.choice(list(DTYPES)),
        "optimizer": draw.choice(ledger.OPTIMIZERS),
        "checkpointing": draw.random() < 0.5,
        "doubleQuant": draw.random() < 0.5,
        "adapters": draw.choice([0, 1, 100, 10_000]),
        "streams": draw.randint(1, 64),
        "context": draw.choice([1, 100, 2048, 32_768]),
        "between": draw.choice([600.0, 1800.0, 86_400.0]),
        "checkpoint": draw.choice([0.0, 0.5, 30.0]),
        "restart": draw.choice([0.0, 120.0]),
    }


def planned(case):
    config = LoraConfig(r=case["r"], target_modules=case["targets"])
    keys = {"adapterDtype": "adapter_dtype", "doubleQuant": "double_quant"}
    rest = ("batch", "seq", "dtype", "adapterDtype", "optimizer", "checkpointing", "doubleQuant")
    settings = {keys.get(key, key): case[key] for key in rest}
    plan = ledger.plan(case["model"], config, case["method"], **settings)
    same = ("bytes", "total", "trainable", "parameters", "adapted", "fits")
    flops = {"flopsForward": plan.flops_forward, "flopsBackward": plan.flops_backward}
    return {name: getattr(plan, name) for name in same} | flops


def questions(case):
    """What ``ledger`` answers to the questions of the page's lower half."""
    config = LoraConfig(r=case["r"], target_modules=case["targets"])
    cards = {name: size * 10**9 for name, size in ledger.GPUS.items()}
    keys = {"adapterDtype": "adapter_dtype", "doubleQuant": "double_quant"}
    rest = ("batch", "seq", "dtype", "adapterDtype", "optimizer", "checkpointing", "doubleQuant")
    settings = {keys.get(key, key): case[key] for key in rest}
    shared = ledger.plan_cards(case["model"], config, case["method"], **settings)
    fewest = {name: shared.shards(size) for name, size in cards.items()}
    n = max(2, fewest["80 GB"] or 2)
    answers = {
        "cards": {
            name: [shared.copies(cards[name]), count, count and shared.shared(count)]
            for name, count in fewest.items()
        },
        "sent": [shared.sent(n, False), shared.sent(n, True)],
    }
    run = ledger.Spot(1.0, case["between"], case["checkpoint"], case["restart"])
    spot = {"interval": run.interval, "stretch": run.stretch, "leastDiscount": run.least_discount}
    if ledger.architecture(case["model"]).family in NOT_DECODERS:
        return answers, None, spot
    sizes = {name: case[name] for name in ("dtype", "adapters", "streams", "context")}
    four_bit = case["method"] == "qlora"
    served = ledger.plan_serving(case["model"], config, four_bit=four_bit, **sizes)
    tenants = {
        name: [served.tenants(size), served.speaking(size), served.alone(size)]
        for name, size in cards.items()
    }
    return answers, {"bytes": served.bytes, "total": served.total, "cards": tenants}, spot


def in_browser(page, tmp_path):
    """The DOM after the page's scripts have run."""
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@needs_browser
def test_the_page_and_the_plan_agree_on_hundreds_of_random_settings(tmp_path):
    draw = random.Random(0)
    cases = [random_case(draw) for _ in range(CASES)]
    run = f"const CASES = {json.dumps(cases)}; document.body.innerHTML = '<pre>' + JSON.stringify("
    run += (
        "CASES.map(c => [predict(c.model, c), planCards(c.model, c), DATA.models[c.model].decodes"
    )
    run += " ? planServing(c.model, c) : null, spot(c.between, c.checkpoint, c.restart)]))"
    run += " + '</pre>';"
    dom = in_browser(planner_page().replace("</html>", f"<script>{run}</script></html>"), tmp_path)
    answers = json.loads(re.search(r"<pre>(.*)</pre>", dom, re.DOTALL).group(1))
    assert len(answers) == CASES
    for case, (step, *others, spot) in zip(cases, answers, strict=True):
        assert step == planned(case), case
        *expected, run = questions(case)
        assert others == expected, case
        assert spot == pytest.approx(run, rel=1e-9), case


@pytest.mark.slow
@needs_browser
def test_the_page_shows_the_plan_of_the_command_line(tmp_path):
    dom = in_browser(planner_page(), tmp_path)
    config = LoraConfig(r=16, target_modules="all-linear")
    plan = ledger.plan("llama-3-8b", config, "qlora", checkpointing=True)
    assert f"{plan.trainable:,} of {plan.parameters:,}" in dom
    assert f'<div id="total">{plan.total / 1e9:.1f} GB</div>' in dom
    assert len(re.findall(r'class="fit "', dom)) == sum(plan.fits.values())
    served = ledger.plan_serving("llama-3-8b", config, four_bit=True, adapters=100, streams=8)
    assert f": {served.total / 1e9:.1f} GB (base" in dom
    assert f"<td>{served.tenants(80 * 10**9):,}</td>" in dom
    for row in ledger.check_claims():
        for stored, size in row.needed.items():
            assert f"<td>{size / 1e9:.1f} GB: {'yes' if row.holds(stored) else 'no'}</td>" in dom
    interval = ledger.best_interval(1800, 1)
    assert f"On spot: a checkpoint every {interval:.1f} s of work" in dom


def test_the_page_is_one_file_without_network(tmp_path):
    page = write_planner(tmp_path / "new" / "planner.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|<link|import\(|fetch\(|XMLHttp", page)
    assert "{{" not in page
    assert len(page) < 120_000


def test_in_a_site_it_links_back_and_alone_it_does_not():
    assert '<a href="index.html">' in planner_page("index.html")
    assert "<a " not in planner_page()
