"""What each process of tests/scale/test_trainer.py runs: HF Trainer on injected adapters."""

import sys
from pathlib import Path

import torch
import transformers

import minilora


def small_llama():
    """A Llama of transformers, small and random, the same in every process, with an adapter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    minilora.inject(model, minilora.LoraConfig(r=4))
    return model


def examples():
    """Rows with few labels and rows with many: ranks get uneven shares of them."""
    random = torch.Generator().manual_seed(1)
    rows = []
    for number in range(16):
        ids = torch.randint(4, (12,), generator=random)
        labels = ids.clone()
        labels[: 10 if number % 2 else 2] = -100
        rows.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    return rows


def main(folder, batch):
    """Train for a few steps; the first process saves the adapter."""
    transformers.utils.logging.disable_progress_bar()
    model = small_llama()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    settings = {"per_device_train_batch_size": batch, "max_steps": 6, "learning_rate": 1e-2}
    arguments = transformers.TrainingArguments(folder / "run", use_cpu=True, **settings, **quiet)
    trainer = transformers.Trainer(model, arguments, train_dataset=examples())
    loss = trainer.train().training_loss
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    ours = {id(p) for p in model.parameters() if p.requires_grad}
    groups = trainer.optimizer.param_groups
    assert {id(p) for group in groups for p in group["params"]} == ours
    minilora.save_adapter(model, folder / f"rank{arguments.process_index}")
    print(f"rank {arguments.process_index} of {arguments.world_size}: {loss:.6f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
