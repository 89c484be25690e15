"""A lesson shows its own output, and not what PEFT and transformers log while they load."""

import logging
import warnings

import pytest

from minilora.learn.peers import quiet_peers


def test_notes_are_left_out_inside_and_heard_again_outside(caplog):
    logger = logging.getLogger("some.peer")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_peers():
            logger.warning("inside")
            warnings.warn("inside", stacklevel=1)
        logger.warning("outside")
        warnings.warn("outside", stacklevel=1)
    assert [record.message for record in caplog.records] == ["outside"]
    assert [str(each.message) for each in heard] == ["outside"]


def test_errors_are_raised_and_the_notes_come_back(caplog):
    with pytest.raises(OSError, match="gone"), quiet_peers():
        raise OSError("gone")
    logging.getLogger("some.peer").warning("outside")
    assert caplog.messages == ["outside"]
