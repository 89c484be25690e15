"""Bugs of soft prompts, prefixes and heads, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

SOFT = (
    Bug(name="padding between prompt and text", where="model.transformer:positions_of",
        right="return ((segments != 0).cumsum(dim=1) - 1).clamp(min=0)",
        wrong="return torch.arange(time, device=device)[None]",
        story="Positions count from the left edge, padding included. Text alone does not mind, "
              "since rotary positions are relative. A soft prompt at the edge does: the padding "
              "moves the text away from it, and an answer depends on its neighbours' lengths. The "
              "thread is about that padding in PEFT's own example.",
        thread="huggingface/peft #1093",
        caught_by="methods/test_prompt_tuning.py::test_a_row_of_a_padded_batch_gets_what_it_gets_alone"),
    Bug(name="a prompt behind the mask", where="methods.prompt_tuning:SoftPrompt.before",
        right="F.pad(segments, (k, 0), value=1)", wrong="F.pad(segments, (k, 0), value=0)",
        story="The text gets a soft prompt, and a mask that hides it. It only shows with padding, "
              "because without padding there is no mask. The thread extends the mask in another "
              "library.",
        thread="huggingface/sentence-transformers #3000",
        caught_by="methods/test_prompt_tuning.py::test_a_row_of_a_padded_batch_gets_what_it_gets_alone"),
    Bug(name="keys for values", where="methods.prefix_tuning:Prefix.before",
        right="cache.fill(rows[0::2], rows[1::2])", wrong="cache.fill(rows[1::2], rows[0::2])",
        story="A prefix lies in one row of numbers, k v k v by layer. Read the other way round, it "
              "trains just as well, and opens wrong in every other library.",
        thread="",
        caught_by="methods/test_prompt_tuning.py::test_forward_and_gradients_equal_pefts"),
    Bug(name="a prefix in a block that is computed twice",
        where="methods.prefix_tuning:Prefix.before",
        right="check_no_checkpointing(decoder)", wrong="pass",
        story="Gradient checkpointing computes each block again in the backward pass, with a cache "
              "that the first pass has filled. PEFT met a mismatch of sizes deep inside; it raises "
              "an error with a sentence since.",
        thread="huggingface/peft #869",
        caught_by="methods/test_prompt_tuning.py::test_a_prefix_and_gradient_checkpointing_exclude_each_other"),
    Bug(name="a name by its last letters", where="lora.extras:ends_in",
        right="fits(path, [entry]) is not None", wrong="path.endswith(entry)",
        story='modules_to_save=["norm"] also trains input_layernorm, whose path ends in the same '
              "letters. PEFT matches so; in the thread model.layers.0 trained img_model.layers.0.",
        thread="huggingface/peft #1917",
        caught_by="formats/test_beside.py::test_a_module_is_named_by_whole_names_only"),
    Bug(name="biases stay on", where="lora.injection:disable_adapter",
        right="switch_copies(model, on=False)", wrong="pass",
        story="Inside disable_adapter the low-rank part is off, and the trained biases and heads "
              "are not. A reference model for KL or DPO is then no reference. PEFT warns of it.",
        thread="",
        caught_by="formats/test_beside.py::test_the_base_comes_back_to_the_bit"),
)  # fmt: skip
