"""Bugs of serving many at once, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

SERVING = (
    Bug(name="the gap filled by half", where="serving.row_batch:RowBatch.move",
        right="self.adapters.move(source, target)", wrong="pass",
        story="A finished row's place goes to the last row: its keys and values move, its adapter "
              "does not. A stream continues with the weights of the one who left, and nothing "
              "reports it. In a like case a load at run time moved the weights under a request.",
        thread="vllm-project/vllm #47724",
        caught_by="serving/test_engine.py::test_lorax_62_under_load_every_row_has_its_own_weights"),
    Bug(name="a tenant that stays", where="model.cache:KVCache.clear",
        right="slots[row] = 0", wrong="pass",
        story="A row is given on without being emptied, since the mask hides what lies behind the "
              "new text. A weight of zero times NaN is NaN: one broken answer breaks the next.",
        thread="",
        caught_by="model/test_cache.py::test_a_row_moves_whole_and_leaves_nothing_behind"),
    Bug(name="one die for all", where="serving.row_batch:Slot.__init__",
        right="torch.Generator().manual_seed(sampling.seed)",
        wrong="torch.default_generator.manual_seed(sampling.seed)",
        story="Every request sets the seed of one generator that all draw from. What a request "
              "gets then depends on who draws in between. A report says that of the batch's order.",
        thread="vllm-project/vllm #17524",
        caught_by="serving/test_engine.py::test_vllm_11658_greedy_and_seeded_answers_do_not_depend_on_neighbours[0.8]"),
    Bug(name="half a letter shown", where="serving.growing_text:GrowingText.push",
        right='text = text.rstrip("\\ufffd")', wrong="pass",
        story="A token may end inside a letter, which decodes to a replacement sign. Once that was "
              "shown, the longer text no longer begins with what was shown, and the stream says "
              "nothing more.",
        thread="leonickson1/Swiftlet #7",
        caught_by="serving/test_growing_text.py::test_a_letter_of_several_tokens_is_shown_whole"),
)  # fmt: skip
