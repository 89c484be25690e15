"""Bugs of serving many adapters, in the form that ``bugs/catalog.py`` describes."""

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
        right="found.append((name, self.find(name), float(weight)))",
        wrong="found += [(name, self.known[name], float(weight))] if name in self.known else []",
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
)  # fmt: skip
