"""What travels, and what must not: the words of a client's error."""

import logging
import traceback

import pytest

from minilora.scale.wire import errors_stay_here
from minilora.training.examples import load_jsonl

SECRET = "The engines of the Anna are too hot."


@pytest.mark.parametrize("line", [f'{{"instruction": "{SECRET}', f'{{"{SECRET}": "no"}}'])
def test_of_an_error_nothing_leaves_but_that_there_was_one(line, tmp_path, caplog):
    """A reader's own error quotes the line and the path; the log keeps them, the error does not."""
    file = tmp_path / "anna.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="anna.jsonl, line 1") as own:
        load_jsonl(file)
    assert SECRET in str(own.value)
    with pytest.raises(RuntimeError) as caught, errors_stay_here(logging.getLogger("flwr")):
        load_jsonl(file)
    assert str(caught.value) == "this client failed; its own log says why"
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET in caplog.text


def test_what_succeeds_and_what_ends_the_process_pass():
    with errors_stay_here(logging.getLogger("flwr")):
        pass
    with pytest.raises(KeyboardInterrupt), errors_stay_here(logging.getLogger("flwr")):
        raise KeyboardInterrupt
