"""Bugs of files for other programs, and of other programs' models, as in ``bugs/catalog.py``."""

from __future__ import annotations

from .bug import Bug

FILES = (
    Bug(name="rows in the wrong order", where="model.gguf_export:in_gguf_order",
        right="return halves.transpose(1, 2).flatten(0, 2)",
        wrong="return halves.flatten(0, 2)",
        story="llama.cpp turns neighbours, Hugging Face the two halves of a head. Without sorting "
              "the rows of q and k the file opens, every shape fits, and the model babbles.",
        thread="",
        caught_by="model/test_gguf_export.py::"
                  "test_transformers_reads_the_file_with_our_logits[llama, gpt-2]"),
    Bug(name="a scale left behind", where="formats.plain_lora:plain_lora",
        right="B = F.pad(B, (0, missing)) * ratio",
        wrong="B = F.pad(B, (0, missing))",
        story="Ranks are padded to one, and one alpha is written. A module whose rank was smaller "
              "than the largest had a larger scale, and now it has the others'.",
        thread="",
        caught_by="formats/test_plain_lora.py::test_every_delta_weight_is_kept_and_the_commonest_to_the_bit"),
    Bug(name="positions that count the padding", where="model.foreign:Foreign.next_logits",
        right="positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]",
        wrong="positions = torch.arange(mask.shape[1]).expand_as(mask)[:, -ids.shape[1] :]",
        story="A shorter question is padded on the left, and its first word gets a later position. "
              "A model with learnt positions then answers by what stands beside it in the batch.",
        thread="",
        caught_by="model/test_foreign.py::test_greedy_answers_are_those_of_transformers_alone_and_in_a_batch[GPT-2]"),
    Bug(name="an identity without an order", where="hub.adapter:Adapter.settings",
        right="if self.order_counts(pattern):", wrong="if False:",
        story="An adapter's identity is a hash over its config with sorted keys. Of alpha_pattern "
              "the first key that fits a module counts, so two orders may be two ΔW, and both got "
              "one identity. This package's hub had the bug.",
        thread="",
        caught_by="hub/test_adapter.py::test_the_order_of_alphas_is_part_of_the_identity_where_it_counts"),
)  # fmt: skip
