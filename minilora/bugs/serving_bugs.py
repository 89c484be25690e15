"""Bugs of serving many adapters at once, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

SERVING = (
    Bug(name="the leftover of the last tenant", where="serving.layer:AdapterRows.admit",
        right="for path, layer in self.layers.items():",
        wrong="for path, layer in [(path, self.layers[path]) for path in total_ranks(parts)]:",
        story="A row is given to another adapter, and only the modules that this one has are "
              "written. In the others the last tenant's factors go on working.",
        thread="sgl-project/sglang #8103",
        caught_by="serving/test_layer.py::test_sglang_8103_nothing_of_the_rows_last_adapter_is_left"),
    Bug(name="the name is the adapter", where="serving.adapter_store:AdapterStore.load",
        right="before is not None and before.content != content and not replace", wrong="False",
        story="New weights come in under an old name, and nothing says so. What was computed with "
              "the old ones, as a cached prefix, then stands for the new.",
        thread="vllm-project/vllm #42125",
        caught_by="serving/test_adapter_store.py::test_vllm_42125_other_weights_under_an_old_name_are_another_content"),
    Bug(name="the base instead", where="serving.adapter_store:AdapterStore.check",
        right="parts.append((name, self.find(name), float(weight)))",
        wrong="parts += [(name, self.known[name], float(weight))] if name in self.known else []",
        story="A request names an adapter that is not there, and the base answers. "
              "The text is fluent, so nobody looks for the typo.",
        thread="huggingface/text-generation-inference #2505",
        caught_by="serving/test_adapter_store.py::test_tgi_2505_an_unknown_name_is_an_error_with_the_nearest_names"),
    Bug(name="dropped while in use", where="serving.adapter_cache:AdapterCache.insert",
        right="if not self.pins[other]:", wrong="if True:",
        story="When room is needed, the least recently used adapter goes, whoever is using it. "
              "Memory then counts less than is in use, and the limit means nothing.",
        thread="",
        caught_by="serving/test_adapter_cache.py::test_a_pinned_adapter_stays_and_a_full_memory_is_an_error_for_the_newcomer"),
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
    Bug(name="an answer for nobody", where="serving.streams:cancelled_when_gone",
        right='(await request.receive())["type"] != "http.disconnect"',
        wrong="await asyncio.Event().wait()",
        story="The server looks at the client only when it sends. An answer in JSON is sent once, "
              "at its end, so who left long ago keeps a row until then. A user saw a server "
              "go on generating after the connection was closed.",
        thread="vllm-project/vllm #54947",
        caught_by="serving/test_streams.py::test_a_client_that_leaves_frees_its_row_within_a_step[json]"),
    Bug(name="nobody is likely enough", where="model.sampling:nucleus",
        right="outside[:, 0] = False", wrong="pass",
        story="A top_p of 5e-324 is above 0, and 0 in float32: the likeliest token is cut off too, "
              "and the request ends with an error of torch's. Requests made from the server's own "
              "description found it.",
        thread="",
        caught_by="model/test_sampling.py::test_a_nucleus_smaller_than_any_float_keeps_the_likeliest"),
    Bug(name="a fast path that calls no hook", where="model.decoding:is_plain",
        right="hooks = module._forward_hooks or module._forward_pre_hooks", wrong="hooks = False",
        story="The short way to a token takes the weights of the layers and calls no module. A "
              "hook, which may change an output, then sees the prompt and no token behind it. "
              "torch's encoder layer left its hooks out in just such a fast path, and asks for "
              "them since.",
        thread="pytorch/pytorch #128413",
        caught_by="model/test_decoding.py::test_a_hook_sees_every_token[norm]"),
    Bug(name="a word without its space", where="serving.growing_text:GrowingText.grow",
        right="self.start, self.read = self.read, len(self.tokens)",
        wrong="self.start = self.read = len(self.tokens)",
        story="The new tokens of a stream are decoded without the one before them and put behind "
              "the text. A decoder that drops the space where a text begins then drops it before "
              "every word.",
        thread="",
        caught_by="serving/test_growing_text.py::test_a_text_goes_on_with_its_spaces_whatever_the_decoder_does_where_a_text_begins"),
    Bug(name="who shouts has all rows", where="serving.waiting:Waiting.next",
        right="self.turns.pop(self.shares.full(rows, several))", wrong="self.turns.pop()",
        story="Turns are fair, and the one who asks for one row gets it at once. But a step takes "
              "as long as all its rows and prompts, and nearly all are the other's.",
        thread="",
        caught_by="serving/test_waiting.py::test_beside_another_it_has_its_share_and_the_other_waits_for_nothing"),
    Bug(name="every reader at a disk that is gone", where="serving.disk_readers:DiskReaders.work",
        right="following = self.turns.pop(full)", wrong="following = self.turns.pop()",
        story="Adapters are read by a few threads, off the one that computes. Someone asks for "
              "several whose disk hangs, and holds all of them: another's adapter, on a disk that "
              "is well, is never read.",
        thread="",
        caught_by="serving/test_disk_readers.py::test_who_hangs_holds_half_of_the_threads_and_all_is_read_in_the_end"),
    Bug(name="a letter begun by the prompt", where="text:beyond",
        right="while not after.startswith(before[:shared]):", wrong="while False:",
        story="A prompt in token ids ends in half a letter, which decodes to a replacement sign. "
              "The answer's first token ends the letter, which stands where the sign stood, so "
              "cutting off the text of before by its length cuts off the letter.",
        thread="",
        caught_by="serving/test_growing_text.py::test_a_letter_that_the_prompt_begins_and_the_answer_ends_is_shown[text]"),
    Bug(name="one text, two meanings", where="serving.access:each_name_once",
        right="if len(whole) < len(pairs):", wrong="if False:",
        story="A name that stands twice in a JSON object is taken from its last place, as Python "
              "does. A proxy that checked the first one has let another request through.",
        thread="",
        caught_by="serving/test_completions.py::test_broken_json_is_a_400_in_the_usual_shape[twice]"),
)  # fmt: skip
