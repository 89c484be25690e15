"""The decision tree: each fork leads to the run that decides it, in the picture and on its page."""

import re

from minilora.learn.course import lessons_folder
from minilora.learn.drawings import FORKS, draw_decision

DOCS = lessons_folder().parent / "docs"


def test_each_fork_is_linked_to_its_run_in_the_picture_and_on_the_page():
    page, picture = (DOCS / "decide.md").read_text(encoding="utf-8"), draw_decision()
    for fork in FORKS:
        file, _, part = fork.link.partition("#")
        text = (DOCS / file).read_text(encoding="utf-8")
        assert not part or f"\n## {part}\n" in text
        assert f'<a href="{fork.link}">' in picture
        assert f"]({fork.link})" in page
        for module in re.findall(r"python -m (\S+)", fork.decides):
            assert (DOCS.parent / f"{module.replace('.', '/')}.py").is_file()
            assert f"python -m {module}" in page
