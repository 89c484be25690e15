"""The site: no broken link, nothing from outside, readable by all; and the lessons are in the wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minilora.learn.book import lesson_page, write_book
from minilora.learn.course import find_lesson, list_lessons
from minilora.learn.pages import CSS, render_docstring, render_prose
from minilora.learn.run import child_environment

ROOT = Path(__file__).parents[2]
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
VOID = {"meta", "link", "img", "br", "hr", "source", "input"}


pytestmark = pytest.mark.slow  # a whole site is made, and opened in a browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    said = []
    write_book(folder, [find_lesson(1), find_lesson(2)], said.append)
    assert "lesson 01_one_matmul (1 of 2), about 5 s …" in said
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
    """What the tests ask of a page: links, ids, headings, images, requests, and whether every element is closed."""

    def __init__(self, file):
        super().__init__()
        self.links, self.ids, self.headings, self.images, self.loads, self.open, self.html = (
            [],
            [],
            [],
            [],
            [],
            [],
            {},
        )
        self.crossed = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found["href"]] if tag == "a" else []
        self.ids += [found["id"]] if "id" in found else []
        self.loads += [found[key] for key in ("src", "srcset") if key in found]
        self.loads += [found["href"]] if tag == "link" else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []
        self.images += [found] if tag == "img" else []
        if tag == "html":
            self.html = found
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.crossed.append(tag)


def pages(site):
    return {file: Page(file) for file in sorted(site.glob("*.html")) if file.name != "planner.html"}


def test_every_link_and_every_file_that_a_page_needs_is_there(site):
    found = pages(site)
    assert len(found) > 10
    for file, page in found.items():
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
        steps = [
            after - before for before, after in zip(page.headings, page.headings[1:], strict=False)
        ]
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
    colours = dict(
        re.findall(
            r"--(\w+): (#\w+)",
            re.findall(r":root \{(.*?)\}", CSS.read_text(encoding="utf-8"), re.DOTALL)[theme],
        )
    )
    for ground in ("paper", "field"):
        for text in ("ink", "soft", "link", "mark", "key", "text", "note", "name", "number"):
            light, dark = sorted(
                (luminance(colours[ground]), luminance(colours[text])), reverse=True
            )
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"


def test_the_page_shows_what_the_run_computed(site):
    page = (site / "01_one_matmul.html").read_text(encoding="utf-8")
    for part in (
        "24 weights, 24 numbers",
        "What the run says",
        "Hint 3",
        "(prefers-color-scheme: dark)",
        "A solution of",
    ):
        assert part in page
    assert "{{" not in page


@pytest.mark.skipif(
    BROWSER is None, reason="the book was not opened: no chromium here (apt-get install chromium)"
)
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_window_and_nothing_is_fetched(site, tmp_path, width):
    """A page of frames measures the others; whatever leaves this machine would go through a proxy that does not exist."""
    names = [file.name for file in pages(site)]
    frames = "".join(
        f'<iframe src="{(site / name).as_uri()}" width="{width}" height="700"></iframe>'
        for name in names
    )
    script = "onload = () => { document.body.dataset.wide = [...document.querySelectorAll('iframe')].map(f => { const d = "
    script += "f.contentDocument; return d.documentElement.scrollWidth + '/' + [...d.images].every(i => i.naturalWidth > 0) + '/' + "
    script += "f.contentWindow.performance.getEntriesByType('resource').every(e => e.name.startsWith('file:')) }).join(' ') }"
    (tmp_path / "frames.html").write_text(
        f"<!doctype html><body>{frames}<script>{script}</script>", encoding="utf-8"
    )
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--dump-dom",
    ]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--proxy-server=127.0.0.1:9",
        (tmp_path / "frames.html").as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'data-wide="([^"]*)"', dom).group(1).split()
    assert len(found) == len(names)
    for name, measured in zip(names, found, strict=True):
        wide, drawn, local = measured.split("/")
        assert int(wide) <= width, f"{name} is {wide} wide in a window of {width}"
        assert (drawn, local) == ("true", "true"), name


def test_prose_cannot_bring_in_html_and_docstrings_keep_their_equations():
    assert "<script>" not in render_prose("<script>alert(1)</script>")
    made = render_docstring("Sum.\n\n    y = x\n\nSo:\n\n>>> f(1)\n2\n\nDone.")
    assert made.count("<pre ") == 2
    assert "<p>Done.</p>" in made


def test_the_lessons_are_in_the_wheel_and_work_in_an_empty_folder(tmp_path):
    for name in ("minilora", "lessons"):
        shutil.copytree(
            ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=tmp_path / "tree",
        capture_output=True,
        text=True,
        check=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert (tmp_path / "site" / "minilora" / "learn" / "book.css").is_file()
    (tmp_path / "empty").mkdir()
    said = subprocess.run(
        [sys.executable, "-m", "minilora.commands.cli", "learn", "1"],
        cwd=tmp_path / "empty",
        env=child_environment() | {"PYTHONPATH": str(tmp_path / "site")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert said.returncode == 0, said.stderr
    assert "What you can now defend" in said.stdout
    there = sorted(
        file.name for file in (tmp_path / "site" / "minilora" / "lessons").glob("[0-9]*.py")
    )
    assert there == [lesson.path.name for lesson in list_lessons()]
    assert len(
        list((tmp_path / "site" / "minilora" / "lessons" / "checks").glob("[0-9]*.py"))
    ) == len(there)
