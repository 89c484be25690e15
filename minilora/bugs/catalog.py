"""Bugs that LoRA libraries have had, or nearly have, each as one wrong line of this package.

Each entry names the function where the bug lives, the right line and the wrong one, the story, a
thread where a peer met it or its like (empty where none is known), and the property test that
catches it. Data only; ``bugs/release.py`` shows the bugs and lets one loose.
"""

from __future__ import annotations

from .bug import Bug
from .file_bugs import FILES
from .gate_bugs import GATE
from .job_bugs import JOBS
from .merge_bugs import MERGE
from .method_bugs import METHODS
from .replay_bugs import REPLAY
from .scale_bugs import SCALE
from .serving_bugs import SERVING
from .soft_bugs import SOFT
from .tenant_bugs import TENANTS
from .traffic_bugs import TRAFFIC

LAYER = (
    Bug(name="unscaled alpha", where="lora.hyperparameters:scaling_of",
        right="lora_alpha / (math.sqrt(r) if use_rslora else r)", wrong="lora_alpha",
        story="The update is scaled by α instead of α/r. Nobody notices where every default has "
              "α = r. In a like case PEFT merged a bias unscaled; its tests missed that, because r "
              "and lora_alpha are both 8 there.",
        thread="huggingface/peft #2489",
        caught_by="lora/test_hyperparameters.py::test_scaling_follows_the_two_papers"),
    Bug(name="rsLoRA by r", where="lora.hyperparameters:scaling_of",
        right="(math.sqrt(r) if use_rslora else r)", wrong="r",
        story="The flag use_rslora is read from the file and then forgotten. "
              "An adapter of rank 64 is served at an eighth of its scale.",
        thread="NVIDIA/TensorRT-LLM #1668",
        caught_by="lora/test_hyperparameters.py::test_scaling_follows_the_two_papers"),
    Bug(name="the wrong fan", where="lora.layer:LoRALayer.reset_parameters",
        right="1 / math.sqrt(self.in_features)", wrong="1 / math.sqrt(self.r)",
        story="A is stored as (in, r), so the usual initialisation takes r for its fan-in. "
              "It starts seven times too large at 768/16.",
        thread="",
        caught_by="lora/test_layer.py::test_a_starts_within_one_over_the_root_of_in_and_b_at_zero"),
    Bug(name="two zeros", where="lora.layer:LoRALayer.reset_parameters",
        right="nn.init.uniform_(self.lora_A, -bound, bound)", wrong="nn.init.zeros_(self.lora_A)",
        story="Both factors start at zero. "
              "Each one's gradient is a product with the other, so neither ever moves.",
        thread="Guitaricet/relora #18",
        caught_by="test_invariants.py::test_4_a_new_adapter_can_learn"),
    Bug(name="no zero", where="lora.layer:LoRALayer.reset_parameters",
        right="nn.init.zeros_(self.lora_B)", wrong="nn.init.uniform_(self.lora_B, -bound, bound)",
        story="Both factors start at random. Training then begins at the base plus noise, and "
              "spends its first steps on undoing it.",
        thread="hao-ai-lab/FastVideo #781",
        caught_by="test_invariants.py::test_1_injected_and_untrained_it_computes_the_base_to_the_bit"),
    Bug(name="dropout on the base", where="lora.layer:LoRALayer.adapt",
        right="y = base(x)\n", wrong="y = base(F.dropout(x, self.lora_dropout, self.training))\n",
        story="Dropout is put in front of the whole layer instead of the adapter. "
              "The frozen model is then trained against noise in itself.",
        thread="", caught_by="test_invariants.py::test_dropout_never_reaches_the_base_path"),
    Bug(name="one mask for the batch", where="lora.layer:LoRALayer.adapt",
        right="x = F.dropout(x, self.lora_dropout)",
        wrong="x = x * F.dropout(torch.ones_like(x[:1]), self.lora_dropout)",
        story="The dropout mask is drawn for one row and shared by all. "
              "A batch of 64 is then one draw, not 64.",
        thread="", caught_by="test_invariants.py::test_dropout_is_drawn_anew_for_every_row"),
    Bug(name="a gradient without its scale", where="lora.layer:gradients_of_factors",
        right="(h.reshape(-1, len(A)).T @ g).mul_(ctx.scaling).T",
        wrong="(h.reshape(-1, len(A)).T @ g).T",
        story="A hand-written backward forgets α/r in one of three places. "
              "The loss still falls, only along another direction.",
        thread="", caught_by="lora/test_layer.py::test_backward_equals_level_0"),
    Bug(name="the base learns too", where="lora.injection:inject",
        right="model.requires_grad_(False)", wrong="pass",
        story="Nothing freezes the modules that have no adapter. "
              "The run looks excellent, and the saved adapter does not contain it.",
        thread="", caught_by="test_invariants.py::test_4_only_a_and_b_learn"),
    Bug(name="biases learn silently", where="lora.injection:inject",
        right="model.requires_grad_(False)",
        wrong='[p.requires_grad_(n.endswith("bias")) for n, p in model.named_parameters()]',
        story="Biases train along, unasked. With the adapter off the model is then not its base. "
              "PEFT warns of that where a user chose bias='all' or 'lora_only'.",
        thread="huggingface/peft #741", caught_by="test_invariants.py::test_4_only_a_and_b_learn"),
)  # fmt: skip

FOUR_BITS = (
    Bug(name="biased rounding", where="nf4.codebook:Codebook.boundaries",
        right="((levels[:-1] + levels[1:]) / 2).tolist()",
        wrong="levels[1:].tolist()",
        story="A value takes the level below it, not the nearest one. "
              "Errors double, and all weights shrink in one direction.",
        thread="",
        caught_by="test_invariants.py::test_8b_four_bits_err_by_half_a_gap_at_most_and_a_second_time_not_at_all"),
    Bug(name="ties go up", where="nf4.tensor:place_plainly",
        right="scaled > boundary", wrong="scaled >= boundary",
        story="A value in the middle between two levels goes to the upper one. "
              "One byte in millions differs from everyone else's.",
        thread="", caught_by="nf4/test_tensor.py::test_the_fast_search_equals_the_definition"),
    Bug(name="nibbles swapped", where="nf4.tensor:pack",
        right="torch.add(codes[1::2], codes[::2], alpha=16)",
        wrong="torch.add(codes[::2], codes[1::2], alpha=16)",
        story="Two codes share a byte, and the first goes into the low half. "
              "Whoever reads it with the other convention swaps neighbours. A like case is FP4, "
              "where a library now has a switch for the order.",
        thread="Comfy-Org/comfy-kitchen #41",
        caught_by="test_invariants.py::test_8a_four_bits_are_the_bytes_of_bitsandbytes"),
    Bug(name="the last block", where="nf4.tensor:quantize",
        right="absmax[-1] = rest.abs().amax().clamp(min=1e-38)",
        wrong="absmax[-1] = torch.cat("
              "[rest, rest.new_full((block_size - len(rest),), 9.0)]).abs().amax()",
        story="The last block is shorter, and its scale is taken over what happens to lie behind "
              "it. Its weights all become zero.",
        thread="bitsandbytes-foundation/bitsandbytes #1884",
        caught_by="nf4/test_tensor.py::test_bytes_scales_and_values_equal_level_0"),
    Bug(name="the mean forgotten", where="nf4.tensor:NF4Tensor.scales",
        right=".add_(self.offset)", wrong="",
        story="Double quantization takes the mean off the scales first, and reading forgets to "
              "add it. The weights are those of another model.",
        thread="",
        caught_by="nf4/test_tensor.py::test_an_8_bit_scale_is_off_by_its_share_of_the_largest_at_most"),
    Bug(name="scales rounded by a cast", where="nf4.linear:NF4Linear._apply",
        right="if moved.dtype != part.dtype:", wrong="if False:",
        story="model.half() also casts the scales of the packed weights. "
              "They are float32 by format, and every weight moves.",
        thread="",
        caught_by="nf4/test_linear.py::test_casting_a_model_leaves_codes_and_scales_alone"),
    Bug(name="a stale cache", where="nf4.linear:NF4Linear.forward",
        right="return FrozenProduct.apply(computed, self.bias, self.quantized).to(x.dtype)",
        wrong='return torch.nn.functional.linear('
              'x, self.__dict__.setdefault("cache", self.weight), self.bias)',
        story="The dequantized weight is kept for the next call. "
              "Four bits then save nothing, and new codes are never looked at.",
        thread="hako-mikan/sd-webui-lora-block-weight #30",
        caught_by="nf4/test_linear.py::test_no_float_weight_outlives_a_call"),
    Bug(name="packed bytes counted", where="lora.injection:trainable_parameters",
        right="sum(module.in_features * module.out_features for module in packed)",
        wrong="sum(module.packed.numel() for module in packed)",
        story="Two 4-bit weights share a byte, and bytes are counted as parameters. "
              "A model of 7 billion reports 3.5. A tutorial printed 10.6 billion for a 20B model.",
        thread="huggingface/peft #1020",
        caught_by="nf4/test_linear.py::test_parameters_are_counted_as_what_they_stand_for"),
)  # fmt: skip

FILES_AND_NAMES = (
    Bug(name="keys ignored", where="formats.mismatches:strange_keys",
        right="    if strange:", wrong="    if False:",
        story="Tensors whose names it does not know are passed over. "
              "The base is then served as if it were the fine-tune. PEFT warns and continues.",
        thread="huggingface/peft #2699",
        caught_by="formats/test_save_and_load.py::test_everything_that_is_wrong_stands_in_one_error"),
    Bug(name="half a typo", where="lora.selection:check_targets_used",
        right="if unused:", wrong="if not chosen:",
        story="One name of several matches nothing, and that is no error. "
              "Half of what was meant trains. PEFT raises an error only when none of the names "
              "matches.",
        thread="huggingface/peft #1959",
        caught_by="lora/test_selection.py::test_one_pattern_of_several_that_matches_nothing_is_an_error"),
    Bug(name="an end without a dot", where="lora.patterns:fits",
        right='name.endswith(f".{entry}")', wrong="name.endswith(entry)",
        story="Names are compared by their last letters. "
              '"proj" then means q_proj, k_proj, v_proj and everything else.',
        thread="",
        caught_by="lora/test_patterns.py::test_a_name_fits_when_it_is_equal_or_ends_in_dot_name"),
    Bug(name="patterns forgotten", where="lora.config:LoraConfig.rank_and_alpha",
        right="first_fit(path, self.alpha_pattern, self.lora_alpha)", wrong="self.lora_alpha",
        story="A module has an alpha of its own in the config, and gets the common one. "
              "The model is another one, without a word.",
        thread="huggingface/peft #3582",
        caught_by="lora/test_selection.py::test_the_same_modules_get_the_same_rank_and_alpha_as_in_peft"),
)  # fmt: skip

TRAINING = (
    Bug(name="clipped while scaled", where="training.steps:steps",
        right="scaler.unscale(parameters)",
        wrong="nn.utils.clip_grad_norm_(parameters, config.clip); scaler.unscale(parameters)",
        story="In float16 the gradient is clipped before the loss's scale is taken out of it. "
              "Every step then counts as far too large, and the model hardly learns.",
        thread="Lightning-AI/pytorch-lightning #9599",
        caught_by="training/test_loss_scaling.py"
                  "::test_scales_and_weights_are_those_of_torchs_grad_scaler"),
    Bug(name="loss on the prompt", where="training.batches:encode",
        right="token if is_learnt else IGNORE", wrong="token",
        story="The labels of the prompt are its own tokens, or zero, not −100. "
              "The model learns to ask.",
        thread="meta-llama/llama-cookbook #101",
        caught_by="training/test_batches.py::test_only_the_answer_and_its_end_have_labels"),
    Bug(name="the mean of means", where="training.objective:mean_over_answers",
        right="summed_loss(model, part) / tokens",
        wrong="summed_loss(model, part) / part.answer_tokens / len(parts)",
        story="Each part of an accumulated batch is averaged by itself. "
              "Short answers then count more than long ones.",
        thread="ml-explore/mlx-lm #1413",
        caught_by="training/test_objective.py::test_accumulation_gives_the_gradient_of_the_whole_batch"),
    Bug(name="a resume that skips data", where="training.order:Layout.indices",
        right="config.batch_size, step, config.seed, alike)",
        wrong="config.batch_size, step, config.seed + config.resume, alike)",
        story="A resumed run shuffles the epoch anew and continues in the middle. "
              "Some examples are seen twice, some never.",
        thread="huggingface/transformers #40691",
        caught_by="training/test_loop.py::test_a_resumed_run_continues_to_the_same_bits[0.0]"),
    Bug(name="examples that see each other", where="training.batches:pack",
        right="segments[index, start : start + len(example.ids)] = number",
        wrong="segments[index, start : start + len(example.ids)] = 1",
        story="Several examples share a row, and attention crosses from one into the next. "
              "The loss looks better than it is.",
        thread="huggingface/trl #784",
        caught_by="training/test_batches.py::test_packing_keeps_every_example_whole_in_its_own_segment"),
    Bug(name="padding attended", where="model.transformer:attention_mask_4d",
        right="(causal & (segments[:, :, None] == segments[:, None, :]))[:, None]",
        wrong="causal[None, None]",
        story="The padding on the left is read as text. "
              "An answer depends on how long its neighbours in the batch are.",
        thread="ml-explore/mlx-lm #1906",
        caught_by="model/test_transformer.py::test_left_padding_changes_no_answer"),
    Bug(name="a cache off by one", where="model.cache:KVCache.open",
        right="torch.arange(past[0], past[0] + time, device=device)",
        wrong="torch.arange(time, device=device) + max(past[0] - 1, 0)",
        story="A new token takes the position of the last one in the cache. "
              "Each is turned by one angle too little; the text stays fluent. In a like case the "
              "offset counted the prompt twice.",
        thread="skyzh/tiny-llm #46",
        caught_by="model/test_transformer.py::test_the_cache_gives_the_logits_of_the_whole_sequence"),
    Bug(name="checkpointing trains nothing", where="lora.injection:ask_for_gradient",
        right="output.requires_grad_(True)", wrong="pass",
        story="A checkpointed block builds its graph only if an input asks for a gradient, and "
              "frozen embeddings never do. The loss stands still.",
        thread="huggingface/peft #137",
        caught_by="test_foreign.py::test_with_enable_input_grads_checkpointing_gives_every_b_its_gradient"),
)  # fmt: skip

BUGS = (
    *(*LAYER, *MERGE, *FOUR_BITS, *FILES_AND_NAMES, *FILES, *TRAINING, *REPLAY),
    *(*METHODS, *SERVING, *SOFT, *TENANTS, *TRAFFIC, *GATE, *JOBS, *SCALE),
)
