"""The zoo's animals: bugs that LoRA libraries have had, or nearly have, each as one wrong line of this package.

Each names the function it lives in, the right line and the wrong one, the story, a thread where a peer met it or its like
(empty where none is known), and the property test that catches it. Data only; ``bugs/release.py`` shows them and lets one loose.
"""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    """One bug: ``right`` stands once in the source of ``where`` (module:function), ``wrong`` is what it would be."""

    name: str
    where: str
    right: str
    wrong: str
    story: str
    thread: str
    caught_by: str


LAYER = (
    Bug(
        "unscaled alpha", "lora.config:scaling_of",
        "lora_alpha / (math.sqrt(r) if use_rslora else r)", "lora_alpha",
        "The update is scaled by α instead of α/r. Nobody notices where every default has α = r.",
        "huggingface/peft #2489", "lora/test_config.py::test_scaling_follows_the_two_papers",
    ),
    Bug(
        "rsLoRA by r", "lora.config:scaling_of",
        "(math.sqrt(r) if use_rslora else r)", "r",
        "The flag use_rslora is read from the file and then forgotten. An adapter of rank 64 is served at an "
        "eighth of its scale.",
        "NVIDIA/TensorRT-LLM #1668", "lora/test_config.py::test_scaling_follows_the_two_papers",
    ),
    Bug(
        "the wrong fan", "lora.layer:LoRALayer.reset_parameters",
        "1 / math.sqrt(self.in_features)", "1 / math.sqrt(self.r)",
        "A is stored as (in, r), so the usual initialisation takes r for its fan-in. It starts seven times too "
        "large at 768/16.",
        "", "lora/test_layer.py::test_a_starts_within_one_over_the_root_of_in_and_b_at_zero",
    ),
    Bug(
        "two zeros", "lora.layer:LoRALayer.reset_parameters",
        "nn.init.uniform_(self.lora_A, -bound, bound)", "nn.init.zeros_(self.lora_A)",
        "Both factors start at zero. Each one's gradient is a product with the other, so neither ever moves.",
        "Guitaricet/relora #18", "test_invariants.py::test_4_a_new_adapter_can_learn",
    ),
    Bug(
        "no zero", "lora.layer:LoRALayer.reset_parameters",
        "nn.init.zeros_(self.lora_B)", "nn.init.uniform_(self.lora_B, -bound, bound)",
        "Both factors start at random. Training then begins at the base plus noise, and spends its first steps on undoing it.",
        "hao-ai-lab/FastVideo #781", "test_invariants.py::test_1_injected_and_untrained_it_computes_the_base_to_the_bit",
    ),
    Bug(
        "dropout on the base", "lora.layer:LoRALayer.forward",
        "y = self.base(x)", "y = self.base(F.dropout(x, self.lora_dropout, self.training))",
        "Dropout is put in front of the whole layer instead of the adapter. The frozen model is then trained "
        "against noise in itself.",
        "", "test_invariants.py::test_dropout_never_reaches_the_base_path",
    ),
    Bug(
        "one mask for the batch", "lora.layer:LoRALayer.forward",
        "x = F.dropout(x, self.lora_dropout)", "x = x * F.dropout(torch.ones_like(x[:1]), self.lora_dropout)",
        "The dropout mask is drawn for one row and shared by all. A batch of 64 is then one draw, not 64.",
        "", "test_invariants.py::test_dropout_is_drawn_anew_for_every_row",
    ),
    Bug(
        "a gradient without its scale", "lora.layer:AddLowRank.backward",
        "(g.T @ h.reshape(-1, len(A))).mul_(ctx.scaling)", "g.T @ h.reshape(-1, len(A))",
        "A hand-written backward forgets α/r in one of three places. The loss still falls, only along another direction.",
        "", "lora/test_layer.py::test_backward_equals_level_0",
    ),
    Bug(
        "the base learns too", "lora.injection:inject",
        "model.requires_grad_(False)", "pass",
        "Nothing freezes the modules that have no adapter. The run looks excellent, and the saved adapter does not contain it.",
        "", "test_invariants.py::test_4_only_a_and_b_learn",
    ),
    Bug(
        "biases learn silently", "lora.injection:inject",
        "model.requires_grad_(False)", '[p.requires_grad_(n.endswith("bias")) for n, p in model.named_parameters()]',
        "Biases train along, unasked. With the adapter switched off the model is then no longer its base.",
        "huggingface/peft #741", "test_invariants.py::test_4_only_a_and_b_learn",
    ),
)  # fmt: skip

MERGE = (
    Bug(
        "transposed merge", "lora.layer:LoRALayer.merged_weight",
        "(delta.T if is_conv1d(self.base) else delta)", "delta",
        "GPT-2 keeps its weights as (in, out), and ΔW is added as it is. On a square matrix nothing complains.",
        "predibase/lorax #106", "lora/test_layer.py::test_conv1d_is_a_linear_with_its_weight_transposed",
    ),
    Bug(
        "merge twice", "lora.layer:LoRALayer.check_mergeable",
        "if self.merged:", "if False:",
        "A second merge adds ΔW again. Some functions merge without saying so, so it happens by itself.",
        "huggingface/peft #1355",
        "lora/test_layer.py::test_merging_twice_unmerging_twice_and_unmerging_without_a_base_are_refused",
    ),
    Bug(
        "unmerge by subtraction", "lora.layer:LoRALayer.swap",
        "parameter.data, self.kept_weight = self.kept_weight, parameter.data",
        "parameter.data = (parameter.data.to(self.lora_A) - self.delta_weight()).to(parameter.dtype)",
        "W0 is not kept but recomputed, as W − ΔW. In bf16 a third of the weights comes back changed after three rounds.",
        "huggingface/peft #3166", "test_invariants.py::test_3a_unmerge_gives_the_weight_back_to_the_bit",
    ),
    Bug(
        "merge rounded twice", "lora.layer:LoRALayer.merged_weight",
        "(weight.to(delta) + (delta.T if is_conv1d(self.base) else delta)).to(dtype)", "weight + delta.to(dtype)",
        "ΔW is rounded to bf16 before it is added, and the sum again. The smaller ΔW is, the more of it that costs.",
        "huggingface/peft #3412", "test_invariants.py::test_2_a_merge_rounds_once",
    ),
    Bug(
        "dropout at the merge", "lora.layer:LoRALayer.check_mergeable",
        "if self.training and self.lora_dropout > 0:", "if False:",
        "A model that still trains is merged. What trains is a random part of the adapter; what is merged is something else.",
        "huggingface/peft #3586", "lora/test_layer.py::test_merging_in_training_mode_with_dropout_is_refused",
    ),
    Bug(
        "half a merge", "lora.merging:merge",
        "weights = [explain(name, layer.merged_weight, bases.get(name)) for name, layer in layers]",
        "for name, layer in layers:\n"
        "        layer.put_merged(explain(name, layer.merged_weight, bases.get(name)), keep_base)\n"
        "    return model",
        "Layers are merged one after the other, and the last one holds a NaN. The error leaves a model that is half merged.",
        "huggingface/peft #3710", "test_invariants.py::test_10_a_failed_operation_leaves_the_model_as_it_was",
    ),
    Bug(
        "tied weights merged", "lora.selection:check_targets",
        "if others:", "if False:",
        "The output head shares its weight with the embedding, and an adapter on it is merged. Every input changes too.",
        "huggingface/peft #2018", "lora/test_injection.py::test_a_tied_head_is_refused_and_an_untied_one_is_not",
    ),
    Bug(
        "cross-terms", "lora.merging:combine",
        "A = torch.cat([part.A for _, part in parts])  # (Σ r, in)\n"
        "        B = torch.cat([weight * part.scaling * part.B for weight, part in parts], dim=1)",
        "A = torch.stack([part.A for _, part in parts]).sum(0)\n"
        "        B = torch.stack([weight * part.scaling * part.B for weight, part in parts]).sum(0)",
        "Adapters are added by adding their factors. (A1 + A2)(B1 + B2) holds two products that nobody has trained.",
        "huggingface/peft #3004", "lora/test_merging.py::test_combining_adds_the_deltas_exactly_where_summing_factors_does_not",
    ),
    Bug(
        "a weight without its sign", "lora.merging:combine",
        "[weight * part.scaling * part.B for weight, part in parts]",
        "[abs(weight) * part.scaling * part.B for weight, part in parts]",
        "To take an adapter away its weight is made negative, and the root of the weight loses the sign. It is "
        "added once more.",
        "huggingface/peft #2918", "lora/test_merging.py::test_combining_adds_the_deltas_exactly_where_summing_factors_does_not",
    ),
)  # fmt: skip

FOUR_BITS = (
    Bug(
        "biased rounding", "nf4.codebook:Codebook.boundaries",
        "((torch.tensor(low) + torch.tensor(high)) / 2).item()", "torch.tensor(high).item()",
        "A value takes the level below it, not the nearest one. Errors double, and all weights shrink in one direction.",
        "", "test_invariants.py::test_8b_four_bits_err_by_half_a_gap_at_most_and_a_second_time_not_at_all",
    ),
    Bug(
        "ties go up", "nf4.tensor:place_plainly",
        "scaled > boundary", "scaled >= boundary",
        "A value in the middle between two levels goes to the upper one. One byte in millions differs from everyone else's.",
        "", "nf4/test_tensor.py::test_the_fast_search_equals_the_definition",
    ),
    Bug(
        "nibbles swapped", "nf4.tensor:pack",
        "torch.add(codes[1::2], codes[::2], alpha=16)", "torch.add(codes[::2], codes[1::2], alpha=16)",
        "Two codes share a byte, and the first goes into the low half. Whoever reads it with the other convention "
        "swaps neighbours.",
        "Comfy-Org/comfy-kitchen #41", "test_invariants.py::test_8a_four_bits_are_the_bytes_of_bitsandbytes",
    ),
    Bug(
        "the last block", "nf4.tensor:quantize",
        "absmax[-1] = rest.abs().amax().clamp(min=1e-38)",
        "absmax[-1] = torch.cat([rest, rest.new_full((block_size - len(rest),), 9.0)]).abs().amax()",
        "The last block is shorter, and its scale is taken over what happens to lie behind it. Its weights all become zero.",
        "bitsandbytes-foundation/bitsandbytes #1884", "nf4/test_tensor.py::test_bytes_scales_and_values_equal_level_0",
    ),
    Bug(
        "the mean forgotten", "nf4.tensor:NF4Tensor.scales",
        ".add_(self.offset)", "",
        "Double quantization takes the mean off the scales first, and reading forgets to add it. The weights are "
        "those of another model.",
        "", "nf4/test_tensor.py::test_an_8_bit_scale_is_off_by_its_share_of_the_largest_at_most",
    ),
    Bug(
        "scales rounded by a cast", "nf4.linear:NF4Linear._apply",
        "if moved.dtype != part.dtype:", "if False:",
        "model.half() also casts the scales of the packed weights. They are float32 by format, and every weight moves.",
        "", "nf4/test_linear.py::test_casting_a_model_leaves_codes_and_scales_alone",
    ),
    Bug(
        "a stale cache", "nf4.linear:NF4Linear.forward",
        "return FrozenProduct.apply(computed, self.bias, self.quantized).to(x.dtype)",
        'return torch.nn.functional.linear(x, self.__dict__.setdefault("cache", self.weight), self.bias)',
        "The dequantized weight is kept for the next call. Four bits then save nothing, and new codes are never looked at.",
        "hako-mikan/sd-webui-lora-block-weight #30", "nf4/test_linear.py::test_no_float_weight_outlives_a_call",
    ),
    Bug(
        "packed bytes counted", "lora.injection:trainable_parameters",
        "sum(module.in_features * module.out_features for module in packed)", "sum(module.packed.numel() for module in packed)",
        "Two 4-bit weights share a byte, and bytes are counted as parameters. A model of 7 billion reports 3.5.",
        "huggingface/peft #1020", "nf4/test_linear.py::test_parameters_are_counted_as_what_they_stand_for",
    ),
)  # fmt: skip

FILES_AND_NAMES = (
    Bug(
        "keys ignored", "formats.save_and_load:adapted_names",
        "    if strange:", "    if False:",
        "Tensors whose names it does not know are passed over. The base is then served as if it were the fine-tune.",
        "huggingface/peft #2699", "formats/test_save_and_load.py::test_everything_that_is_wrong_stands_in_one_error",
    ),
    Bug(
        "half a typo", "lora.selection:check_patterns_used",
        "if unused:", "if not chosen:",
        "One name of several matches nothing, and that is no error. Half of what was meant trains.",
        "huggingface/peft #1959", "lora/test_injection.py::test_one_pattern_of_several_that_matches_nothing_is_an_error",
    ),
    Bug(
        "an end without a dot", "lora.selection:fits",
        'name.endswith(f".{entry}")', "name.endswith(entry)",
        'Names are compared by their last letters. "proj" then means q_proj, k_proj, v_proj and everything else.',
        "", "lora/test_injection.py::test_a_name_fits_when_it_is_equal_or_ends_in_dot_name",
    ),
    Bug(
        "patterns forgotten", "lora.selection:rank_and_alpha",
        "first_fit(name, config.alpha_pattern, config.lora_alpha)", "config.lora_alpha",
        "A module has an alpha of its own in the config, and gets the common one. The model is another one, without a word.",
        "huggingface/peft #3582", "lora/test_selection.py::test_the_same_modules_get_the_same_rank_and_alpha_as_in_peft",
    ),
)  # fmt: skip

TRAINING = (
    Bug(
        "loss on the prompt", "training.batches:encode",
        "[IGNORE] * len(prompt) + answer", "prompt + answer",
        "The labels of the prompt are its own tokens, or zero, not −100. The model learns to ask.",
        "meta-llama/llama-cookbook #101", "training/test_batches.py::test_only_the_answer_and_its_end_have_labels",
    ),
    Bug(
        "the mean of means", "training.loop:Run.step",
        "summed_loss(self.model, part) / tokens", "summed_loss(self.model, part) / part.answer_tokens / len(parts)",
        "Each part of an accumulated batch is averaged by itself. Short answers then count more than long ones.",
        "ml-explore/mlx-lm #1413", "training/test_loop.py::test_accumulation_gives_the_gradient_of_the_whole_batch",
    ),
    Bug(
        "a resume that skips data", "training.loop:Run.batches",
        "config.batch_size, step, config.seed)", "config.batch_size, step, config.seed + config.resume)",
        "A resumed run shuffles the epoch anew and goes on in the middle. Some examples are seen twice, some never.",
        "huggingface/transformers #40691", "training/test_loop.py::test_a_resumed_run_continues_to_the_same_bits[0.0]",
    ),
    Bug(
        "examples that see each other", "training.batches:pack",
        "segments[index, start : start + len(example.ids)] = number", "segments[index, start : start + len(example.ids)] = 1",
        "Several examples share a row, and attention crosses from one into the next. The loss looks better than it is.",
        "huggingface/trl #784", "training/test_batches.py::test_packing_keeps_every_example_whole_in_its_own_segment",
    ),
    Bug(
        "padding attended", "model.transformer:attention_mask_4d",
        "(causal & (segments[:, past:, None] == segments[:, None, :]))[:, None]", "causal[None, None]",
        "The padding on the left is read as text. An answer depends on how long its neighbours in the batch are.",
        "ml-explore/mlx-lm #1906", "model/test_transformer.py::test_left_padding_changes_no_answer",
    ),
    Bug(
        "a cache off by one", "model.transformer:Decoder.forward",
        "torch.arange(past, past + time, device=x.device)", "torch.arange(time, device=x.device) + max(past - 1, 0)",
        "A new token takes the position of the last one in the cache. Each is turned by one angle too little; the "
        "text stays fluent.",
        "EricLBuehler/mistral.rs #300", "model/test_transformer.py::test_the_cache_gives_the_logits_of_the_whole_sequence",
    ),
    Bug(
        "checkpointing trains nothing", "lora.injection:ask_for_gradient",
        "output.requires_grad_(True)", "pass",
        "A checkpointed block builds its graph only if an input asks for a gradient, and frozen embeddings never "
        "do. The loss stands still.",
        "huggingface/peft #137",
        "test_foreign.py::test_with_enable_input_grads_checkpointing_gives_every_b_its_gradient",
    ),
)  # fmt: skip

BUGS = (*LAYER, *MERGE, *FOUR_BITS, *FILES_AND_NAMES, *TRAINING)
