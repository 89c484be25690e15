"""Bugs of LoRA's cousins and rivals (minilora/methods)."""

from __future__ import annotations

from .bug import Bug

METHODS = (
    Bug(name="a row of zeros", where="methods.dora:DoRALayer.relative_magnitude",
        right="return torch.where(zero, 1.0, self.lora_magnitude_vector / "
              "norm.masked_fill(zero, 1.0))",
        wrong="return self.lora_magnitude_vector / norm",
        story="DoRA divides each row by its length, and a pruned row has none. The loss is NaN in "
              "the first step. The thread began with a broken download; then a reporter counted "
              "434 rows of zeros in a released model.",
        thread="huggingface/peft #2049",
        caught_by="methods/test_dora.py::test_a_row_of_zeros_is_no_nan"),
    Bug(name="a loss nobody adds", where="methods.adalora:AdaLoRALayer.extra_loss",
        right="if not products:", wrong="if True:",
        story="AdaLoRA's orthogonality is part of its loss, and the function that would add it is "
              "never called. The run looks well, and the importances cannot be compared.",
        thread="huggingface/peft #432",
        caught_by="methods/test_training_hooks.py::test_the_orthogonality_is_in_the_loss_whatever_the_task_type"),
    Bug(name="ranks that stay", where="training.run:set_up",
        right="update_and_allocate(model, state.step + 1)", wrong="None",
        story="Nobody calls the step that prunes. All ranks stay as they began, and the adapter is "
              "a LoRA of the largest rank.",
        thread="huggingface/peft #1801",
        caught_by="methods/test_training_hooks.py::test_the_loop_prunes_adalora_to_its_budget"),
    Bug(name="pruned and grown back", where="methods.adalora:AdaLoRALayer.update_and_allocate",
        right="layer.lora_E[~layer.alive] = 0",
        wrong="layer.lora_E[~layer.alive & (due or step >= config.last_allocation)] = 0",
        story="A pruned triplet is set to zero once, and the optimizer moves it again in the next "
              "step. Between two allocations all ranks are used; a run that stops there has saved "
              "none.",
        thread="",
        caught_by="methods/test_adalora.py::test_a_pruned_triplet_does_not_grow_back_between_two_allocations"),
    Bug(name="a bias left unscaled", where="methods.ia3:IA3Layer.fold",
        right="bias.detach() * scale.flatten()", wrong="bias",
        story="(IA)³ scales an output, and the bias is part of it. The merge scales the weight "
              "only. In a like case PEFT, taking a merge back, multiplied a convolution's bias "
              "once more where it had to divide.",
        thread="huggingface/peft #3216",
        caught_by="methods/test_ia3.py::test_a_merge_scales_the_bias_with_the_output_and_only_with_it"),
    Bug(name="decay to silence", where="methods.training_hooks:pull_to_neutral",
        right='group["neutral"]', wrong="0.0",
        story="Weight decay pulls every matrix to zero. For a factor that starts as one, zero is "
              "not neutral: it switches the layer off.",
        thread="",
        caught_by="methods/test_training_hooks.py::test_decay_pulls_ia3_towards_one_and_lora_towards_zero"),
    Bug(name="another base's A and B", where="formats.peft_files:lora_config",
        right="init if init in STARTS else True", wrong="True",
        story="PiSSA's file holds A and B beside a base from which their start was taken. Read as "
              "plain LoRA it adds that start once more. When PiSSA came to PEFT, the thread warned "
              "of adapters that do not fit the changed base.",
        thread="huggingface/peft #1626",
        caught_by="formats/test_variant_files.py::test_pefts_folder_opens_here_with_equal_logits[pissa]"),
    Bug(name="a start without its scale", where="methods.loftq:start",
        right="layer.r, layer.scaling)", wrong="layer.r, 1.0)",
        story="LoftQ gives A and B what four bits lost of the weight, and the forward pass scales "
              "it by alpha / r. Unless the start divides that out, alpha = 2 r adds the loss "
              "twice, as far from the weight as before. The thread asks why PEFT does not; a "
              "maintainer agrees that it should be considered.",
        thread="huggingface/peft #1982",
        caught_by="methods/test_loftq.py::test_it_is_pefts_with_the_scale_divided_out"),
    Bug(name="biases that were trained for nothing", where="methods.bitfit:BitFitLayer.fold",
        right="return weight, delta if bias is None else bias.detach() + delta",
        wrong="return weight, bias if bias is None else bias.detach() + delta",
        story="The base has no bias, so the trained one has no place, and is dropped without a "
              "word. In a like case PEFT looked for a trained bias under another name, and saved "
              "none.",
        thread="huggingface/peft #3306",
        caught_by="methods/test_bitfit.py::test_a_merge_gives_the_linear_a_bias_and_unmerge_takes_it_back"),
)  # fmt: skip
