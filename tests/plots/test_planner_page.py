"""The planner page computes what ``plan`` computes, to the byte, in a real browser."""

import json
import random
import re
import shutil
import subprocess

import pytest

from minilora import LoraConfig, ledger
from minilora.ledger.estimate import DTYPES
from minilora.plots.planner_page import planner_page, write_planner

from .. import profiles

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(
    BROWSER is None,
    reason="the planner page was not opened: chromium is missing (apt-get install chromium)",
)
CASES = profiles.of(dev=20, ci=400, thorough=4000)


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
    run += "CASES.map(c => predict(c.model, c))) + '</pre>';"
    dom = in_browser(planner_page().replace("</html>", f"<script>{run}</script></html>"), tmp_path)
    answers = json.loads(re.search(r"<pre>(.*)</pre>", dom, re.DOTALL).group(1))
    assert len(answers) == CASES
    for case, answer in zip(cases, answers, strict=True):
        assert answer == planned(case), case


@pytest.mark.slow
@needs_browser
def test_the_page_shows_the_plan_of_the_command_line(tmp_path):
    dom = in_browser(planner_page(), tmp_path)
    config = LoraConfig(r=16, target_modules="all-linear")
    plan = ledger.plan("llama-3-8b", config, "qlora", checkpointing=True)
    assert f"{plan.trainable:,} of {plan.parameters:,}" in dom
    assert f'<div id="total">{plan.total / 1e9:.1f} GB</div>' in dom
    assert len(re.findall(r'class="fit "', dom)) == sum(plan.fits.values())


def test_the_page_is_one_file_without_network(tmp_path):
    page = write_planner(tmp_path / "new" / "planner.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|<link|import\(|fetch\(|XMLHttp", page)
    assert "{{" not in page
    assert len(page) < 120_000


def test_in_a_site_it_links_back_and_alone_it_does_not():
    assert '<a href="index.html">' in planner_page("index.html")
    assert "<a " not in planner_page()
