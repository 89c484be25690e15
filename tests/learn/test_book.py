"""The site: no broken link, nothing from outside, readable by all. The wheel has the lessons."""

import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from minilora.learn.book import lesson_page, write_book
from minilora.learn.cells import parse_lesson
from minilora.learn.course import find_lesson, list_lessons
from minilora.learn.pages import CSS, render_docstring, render_prose
from minilora.learn.run import child_environment

ROOT = Path(__file__).parents[2]
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
SCRIPTED = ("planner.html", "search.html")
VOID = {"meta", "link", "img", "br", "hr", "source", "input"}

pytestmark = pytest.mark.slow  # a whole site is made, and opened in a browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    lines = []
    write_book(folder, [find_lesson(1), find_lesson(2)], lines.append)
    assert "lesson 01_one_matmul (1 of 2), about 5 s …" in lines
    return folder


def test_a_site_for_a_class_has_no_solutions(site):
    lesson = find_lesson(1)
    with_solution = (site / "01_one_matmul.html").read_text(encoding="utf-8")
    cells = [{"prose": cell.text, "output": "", "figures": []} for cell in lesson.cells]
    run = {"cells": cells, "predictions": {name: 1 for name in lesson.predictions}}
    page = lesson_page(lesson, run, site, None, None, solved=False)
    assert "A solution of weight_gradient" in with_solution
    assert "solution" not in page.lower()
    assert "minilora learn 1" in page


class Page(HTMLParser):
    """A page's links, ids, headings, images and requests, and the elements that are not closed."""

    def __init__(self, file):
        super().__init__()
        self.links, self.ids, self.headings, self.images = [], [], [], []
        self.loads, self.open, self.crossed, self.html = [], [], [], {}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given["href"]] if tag == "a" else []
        self.ids += [given["id"]] if "id" in given else []
        self.loads += [given[key] for key in ("src", "srcset") if key in given]
        self.loads += [given["href"]] if tag == "link" else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []
        self.images += [given] if tag == "img" else []
        if tag == "html":
            self.html = given
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.crossed.append(tag)


def pages(site):
    return {file: Page(file) for file in sorted(site.glob("*.html")) if file.name not in SCRIPTED}


def test_every_link_and_every_file_that_a_page_needs_is_there(site):
    by_file = pages(site)
    assert len(by_file) > 10
    for file, page in by_file.items():
        for link in page.links:
            name, _, anchor = link.partition("#")
            assert not re.match(r"\w+:", link), f"{file.name} links outside: {link}"
            assert not name or (site / name).is_file(), f"{file.name}: {link} is broken"
            if anchor and name in ("", file.name):
                assert anchor in page.ids
        for load in page.loads:
            assert load == "data:," or (site / load).is_file(), f"{file.name} needs {load}"
        assert page.crossed == [], file.name
        assert page.open == [], file.name
        assert "<script" not in file.read_text(encoding="utf-8")


def test_pages_have_a_language_a_title_headings_in_order_and_alt_texts(site):
    for file, page in pages(site).items():
        assert page.html.get("lang") == "en"
        assert re.search(r"<title>[^<]{8,}</title>", file.read_text(encoding="utf-8")), file.name
        assert page.headings.count(1) == 1, file.name
        assert page.headings[0] == 1, file.name
        steps = [after - before for before, after in pairwise(page.headings)]
        assert max(steps, default=0) <= 1, f"{file.name} skips a level: {page.headings}"
        assert len(set(page.ids)) == len(page.ids), file.name
        assert all(len(image.get("alt", "")) > 15 for image in page.images), file.name
    assert Page(site / "01_one_matmul.html").images


def luminance(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(theme):
    themes = re.findall(r":root \{(.*?)\}", CSS.read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w+)", themes[theme]))
    for ground in ("paper", "field"):
        for text in ("ink", "soft", "link", "mark", "key", "text", "note", "name", "number"):
            dark, light = sorted(luminance(colours[name]) for name in (ground, text))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"


def test_the_page_shows_what_the_run_computed(site):
    page = " ".join((site / "01_one_matmul.html").read_text(encoding="utf-8").split())
    for part in ("24 weights, 24 numbers", "What the run says", "Hint 3", "A solution of"):
        assert part in page
    assert "(prefers-color-scheme: dark)" in page
    assert "{{" not in page


MEASURE = """onload = () => {
  document.body.dataset.wide = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, loads = frame.contentWindow.performance
    const drawn = [...page.images].every(image => image.naturalWidth > 0)
    const local = loads.getEntriesByType('resource').every(load => load.name.startsWith('file:'))
    return page.documentElement.scrollWidth + '/' + drawn + '/' + local
  }).join(' ')
}"""


@pytest.mark.skipif(
    BROWSER is None,
    reason="the book was not opened: chromium is missing (apt-get install chromium)",
)
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_window_and_nothing_is_fetched(site, tmp_path, width):
    """A page of frames measures the others.

    Any request that leaves the machine goes through a proxy that does not exist.
    """
    names = [file.name for file in pages(site)]
    frames = "".join(
        f'<iframe src="{(site / name).as_uri()}" width="{width}" height="700"></iframe>'
        for name in names
    )
    html = f"<!doctype html><body>{frames}<script>{MEASURE}</script>"
    (tmp_path / "frames.html").write_text(html, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--allow-file-access-from-files", "--proxy-server=127.0.0.1:9"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frames.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    measures = re.search(r'data-wide="([^"]*)"', dom).group(1).split()
    assert len(measures) == len(names)
    for name, measure in zip(names, measures, strict=True):
        wide, drawn, local = measure.split("/")
        assert int(wide) <= width, f"{name} is {wide} wide in a window of {width}"
        assert (drawn, local) == ("true", "true"), name


def test_prose_cannot_bring_in_html_and_docstrings_keep_their_equations():
    assert "<script>" not in render_prose("<script>alert(1)</script>")
    made = render_docstring("Sum.\n\n    y = x\n\nSo:\n\n>>> f(1)\n2\n\nDone.")
    assert made.count("<math ") == made.count("<pre ") == 1
    assert "<p>Done.</p>" in made


def test_the_lessons_are_in_the_wheel_and_work_in_an_empty_folder(tmp_path):
    tree, site, empty = (tmp_path / name for name in ("tree", "site", "empty"))
    for name in ("minilora", "lessons"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    assert (site / "minilora" / "learn" / "book.css").is_file()
    empty.mkdir()
    walk = subprocess.run(
        [sys.executable, "-m", "minilora.commands.cli", "learn", "1"],
        cwd=empty,
        env=child_environment() | {"PYTHONPATH": str(site)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert walk.returncode == 0, walk.stderr
    assert "What you can now defend" in walk.stdout
    lessons = site / "minilora" / "lessons"
    names = sorted(file.name for file in lessons.glob("[0-9]*.py"))
    assert names == [lesson.path.name for lesson in list_lessons()]
    assert len(list((lessons / "checks").glob("[0-9]*.py"))) == len(names)


def test_an_equation_is_typeset_and_other_columns_stay():
    made = render_prose(
        "So\n\n    s = α / √r     rsLoRA\n\nand\n\n    weights    a column: of words\n"
    )
    assert "<mfrac><mi>α</mi><msqrt><mi>r</mi></msqrt></mfrac>" in made
    assert "<mtext>rsLoRA</mtext>" in made
    assert '<pre class="plain" tabindex="0"><code>weights    a column: of words' in made


@pytest.mark.parametrize("text", ["y = x)", "a / = b", "s = √", "f(x = 2", "a = b /", "= α / r"])
def test_a_broken_equation_is_never_half_typeset(text):
    made = render_prose(f"So\n\n    {text}\n")
    assert made.count("<mrow>") == made.count("</mrow>")
    assert ("<math" in made) == (text == "= α / r")


LESSON = """# %% [markdown]
# # 01 · Does it end?
#
# Know first: nothing · Difficulty ●○○ · 1 minute to read · 1 second to run

# %%
{code}
"""


def test_a_lesson_that_fails_leaves_a_note_and_the_next_book_runs_only_that_one(tmp_path):
    def lesson(name, code):
        file = tmp_path / f"{name}.py"
        file.write_text(LESSON.replace("01 ·", f"{name[:2]} ·").format(code=code), encoding="utf-8")
        return parse_lesson(file)

    good, site, lines = lesson("01_good", "print(6 * 7)"), tmp_path / "site", []
    bad = lesson("02_bad", "raise RuntimeError('the dog ate it')")
    slow = lesson("03_slow", "while True: pass")
    book = write_book(site, [good, bad, slow], lines.append, limit=6)
    assert list(book.failed) == ["02_bad", "03_slow"]
    assert "the dog ate it" in (site / "02_bad.html").read_text(encoding="utf-8")
    assert "took more than 6 seconds" in (site / "03_slow.html").read_text(encoding="utf-8")
    assert "42" in (site / "01_good.html").read_text(encoding="utf-8")
    again = write_book(site, [good, lesson("02_bad", "print('mended')")], lines.append)
    assert not again.failed
    assert "lesson 01_good (1 of 2), run before" in lines
    assert "mended" in (site / "02_bad.html").read_text(encoding="utf-8")


@pytest.mark.skipif(BROWSER is None, reason="the search was not tried: chromium is missing")
def test_the_search_finds_a_heading_and_nothing_for_nonsense(site):
    def ask(words):
        page = f"{(site / 'search.html').as_uri()}?q={words}"
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    assert re.search(r'href="01_one_matmul.html#build[^"]*">01 · What', ask("gradient+weight"))
    assert "Nothing. Try fewer words." in ask("zzyzx")
