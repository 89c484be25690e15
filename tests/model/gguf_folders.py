"""Small folders in the shapes of known models, with the tokenizers that llama.cpp knows."""

import json

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts

from minilora.model import gguf_vocab

from .chat_folders import FAMILIES, TEXT

WORDS = [*TEXT, "It's 1234 of 90%, I'VE said: don't!\n\nTwo  spaces\tand 12 345 6789 x1y22"] * 3
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 500_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
BIASES = {"attention_bias": True, "mlp_bias": True}
# name: family, tokenizer, chat form, what differs in its config
FOLDERS = {
    "llama, gpt-2": ("llama", "gpt-2", "chatml", {}),
    "llama 2": ("llama", "llama", "llama2", {"num_key_value_heads": 4}),
    "llama 3": ("llama", "llama-bpe", "llama3", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "linear rope": ("llama", "dbrx", "llama3", {"rope_parameters": LINEAR}),
    "biases": ("llama", "smollm", "chatml", BIASES),
    "mistral 7b": ("mistral", "tekken", "mistral", {"sliding_window": None}),
    "qwen 2": ("qwen2", "qwen2", "chatml", {}),
    "qwen 3": ("qwen3", "qwen2", "qwen3", {"head_dim": 128, "tie_word_embeddings": True}),
}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
REGEX = {name: regex for (regex, _), name in gguf_vocab.NAMES.items()}


def byte_level(kind, marks):
    """A byte-level BPE that cuts texts as the model does after which ``kind`` is named."""
    raw = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    if kind == "gpt-2":
        raw.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False)
    elif kind == "smollm":
        digits = cuts.Digits(individual_digits=True)
        raw.pre_tokenizer = cuts.Sequence([digits, cuts.ByteLevel(add_prefix_space=False)])
    else:
        split = cuts.Split(Regex(REGEX[kind]), "isolated")
        plain = cuts.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.pre_tokenizer = cuts.Sequence([split, plain])
    if kind == "qwen2":
        raw.normalizer = normalizers.NFC()
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(cuts.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(WORDS, trainer)
    raw.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return raw


def sentencepiece():
    """A BPE as converted from SentencePiece."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    raw.decoder = decoders.Sequence(steps)
    known = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=known, show_progress=False)
    raw.train_from_iterator([word for line in WORDS for word in line.split(" ")], trainer)
    content = json.loads(raw.to_str())
    added = content["added_tokens"]
    content["added_tokens"] = [each for each in added if not each["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(content))


def write_gguf_folder(folder, name, std=0.15):
    """A model folder as transformers saves it; its weights are numbers of half precision."""
    family, kind, form, changes = FOLDERS[name]
    template, marks, _, bos, eos, _ = FAMILIES[form]
    raw = sentencepiece() if kind == "llama" else byte_level(kind, marks)
    vocab = {"vocab_size": raw.get_vocab_size() + 5}  # rows without a token, as many models have
    ids = {"eos_token_id": raw.token_to_id(eos), "bos_token_id": raw.token_to_id(bos or "")}
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **vocab, **ids, **changes})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
        parameter.data.copy_(parameter.data.half().float())
    model.save_pretrained(folder)
    raw.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": bos}
    about |= {"unk_token": "<unk>"} if kind == "llama" else {}
    about = {"chat_template": template, **{n: text for n, text in about.items() if text}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder
