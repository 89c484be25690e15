"""Bugs of merging and of combining, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

MERGE = (
    Bug(name="transposed merge", where="lora.layer:LoRALayer.fold",
        right="weight.to(delta) + delta",
        wrong="weight.to(delta) + (delta.T if is_conv1d(self.base) else delta)",
        story="GPT-2 keeps its weights as (in, out), and ΔW is added as it is. "
              "On a square matrix nothing complains.",
        thread="predibase/lorax #106",
        caught_by="lora/test_linears.py::test_an_adapter_on_conv1d_computes_the_same_merged"),
    Bug(name="merge twice", where="lora.adapter_layer:AdapterLayer.check_mergeable",
        right="if self.merged:", wrong="if False:",
        story="A second merge adds ΔW again. "
              "Some functions merge without saying so, so it happens by itself.",
        thread="huggingface/peft #1355",
        caught_by="lora/test_adapter_layer.py::test_merging_twice_unmerging_twice_and_unmerging_without_a_base_are_refused"),
    Bug(name="unmerge by subtraction", where="lora.adapter_layer:AdapterLayer.swap",
        right="exchange(self.base, other)",
        wrong="merged = self.base.weight.data\n"
              "        self.base.weight.data = "
              "(2 * merged - self.fold(merged, None)[0]).to(merged.dtype)",
        story="W0 is not kept but recomputed, as W − ΔW. "
              "In bf16 a third of the weights comes back changed after three rounds. In a like "
              "case PEFT rebuilt a weight between several DoRA merges, which is not exact either.",
        thread="huggingface/peft #3609",
        caught_by="test_invariants.py::test_3a_unmerge_gives_the_weight_back_to_the_bit"),
    Bug(name="merge rounded twice", where="lora.layer:LoRALayer.fold",
        right="weight.to(delta) + delta", wrong="weight + delta.to(weight.dtype)",
        story="ΔW is rounded to bf16 before it is added, and the sum again. "
              "The smaller ΔW is, the more of it that costs.",
        thread="huggingface/peft #3412",
        caught_by="test_invariants.py::test_2_a_merge_rounds_once"),
    Bug(name="dropout at the merge", where="lora.layer:LoRALayer.check_mergeable",
        right="if self.training and self.lora_dropout > 0:", wrong="if False:",
        story="A model that still trains is merged. "
              "Training uses a random part of the adapter, and the merge takes all of it.",
        thread="huggingface/peft #3586",
        caught_by="lora/test_layer.py::test_merging_in_training_mode_with_dropout_is_refused"),
    Bug(name="half a merge", where="lora.merging:merge",
        right="put_all(layers, merged_bases(layers, onto), keep_base)",
        wrong="for path, layer in layers:\n"
              "        layer.put(with_path(path, layer.merged_base), keep_base)",
        story="Layers are merged one after the other, and the last one holds a NaN. "
              "The error leaves a model that is half merged. Like cases in PEFT write a weight "
              "first and check the bias afterwards.",
        thread="huggingface/peft #3710",
        caught_by="test_invariants.py::test_10_a_failed_operation_leaves_the_model_as_it_was"),
    Bug(name="tied weights merged", where="lora.sites:why_refused",
        right="if tied:", wrong="if False:",
        story="The output head shares its weight with the embedding, and an adapter on it is "
              "merged. Every input changes too.",
        thread="huggingface/peft #2018",
        caught_by="lora/test_sites.py::test_a_tied_head_is_refused_and_an_untied_one_is_not"),
    Bug(name="cross-terms", where="lora.combining:side_by_side",
        right="A = torch.cat([part.A for _, part in parts])  # (Σ r, in)\n"
              "    B = torch.cat("
              "[weight * part.scaling * part.B for weight, part in parts], dim=1)",
        wrong="A = torch.stack([part.A for _, part in parts]).sum(0)\n"
              "    B = torch.stack("
              "[weight * part.scaling * part.B for weight, part in parts]).sum(0)",
        story="Adapters are added by adding their factors. "
              "(A1 + A2)(B1 + B2) holds two products that nobody has trained.",
        thread="huggingface/peft #3004",
        caught_by="lora/test_combining.py::test_combining_adds_the_deltas_exactly_where_summing_factors_does_not"),
    Bug(name="a weight without its sign", where="lora.combining:side_by_side",
        right="[weight * part.scaling * part.B for weight, part in parts]",
        wrong="[abs(weight) * part.scaling * part.B for weight, part in parts]",
        story="To take an adapter away its weight is made negative, and the root of the weight "
              "loses the sign. It is added once more.",
        thread="huggingface/peft #2918",
        caught_by="lora/test_combining.py::test_combining_adds_the_deltas_exactly_where_summing_factors_does_not"),
    Bug(name="rsLoRA combined", where="formats.combined_files:config_for",
        right='"use_rslora": False', wrong='"use_rslora": config["use_rslora"]',
        story="The scales are folded into the factors and alpha is set to r, which means a scale "
              "of 1; but the flag of the first adapter is kept, under which it means √r. PEFT "
              "0.21.2 does so.",
        thread="huggingface/peft #3761",
        caught_by="formats/test_combined_files.py::test_rslora_adapters_keep_their_strength_where_peft_overscales"),
)  # fmt: skip
