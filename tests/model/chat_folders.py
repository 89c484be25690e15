"""Tokenizer folders in the shapes of well-known chat models: small vocabularies, real forms.

The templates are written anew after the documented form of each family; the marks are the
families' own.
"""

import json

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = ["User: hello there you go\nAssistant: hi, how are you? The hull is at 90%."] * 20

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

CHATML_GENERATION = """{% for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{- message.content + '<|im_end|>' }}{% endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for message in rest %}
{% if loop.index0 == 0 and system %}
{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}
{% else %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}{% endif %}
{% endfor %}"""

LLAMA3 = """{% for message in messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}
{% if loop.first %}{% set content = bos_token + content %}{% endif %}
{{- content }}
{%- endfor %}
{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

ZEPHYR = """{% for message in messages %}
{{- '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

PHI3 = """{% for message in messages %}
{{- '<|' ~ message['role'] ~ '|>\n' ~ message['content'] ~ '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{% endif %}"""

MISTRAL = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set talk = messages[1:] %}
{%- else %}{% set talk = messages %}{% endif %}
{%- if tools is not none %}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in talk %}
{%- if message.role == 'user' %}
{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}
{%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{% endif %}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS] ' + message.content | tojson + '[/TOOL_RESULTS]' }}
{%- else %}{{- ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""

QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}
{%- for tool in tools %}{{- tool | tojson + '\n' }}{% endfor %}{{- '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content %}{% set reasoning = '' %}
{%- if '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or reasoning) %}
{{- '<think>\n' + reasoning + '\n</think>\n\n' }}{% endif %}
{{- content + '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
# family: template, marks (special), added words that are not, bos, eos, what ends a turn
FAMILIES = {
    "chatml": (CHATML, IM, (), None, "<|im_end|>", "<|im_end|>"),
    "generation": (CHATML_GENERATION, IM, (), None, "<|im_end|>", "<|im_end|>"),
    "llama2": (LLAMA2, ("<unk>", "<s>", "</s>"), (), "<s>", "</s>", "</s>"),
    "llama3": (LLAMA3, (*HEADERS, "<|eot_id|>"), (), HEADERS[0], HEADERS[1], "<|eot_id|>"),
    "zephyr": (ZEPHYR, ("<unk>", "<s>", "</s>"), (), "<s>", "</s>", "</s>"),
    "gemma": (
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        (),
        *("<bos>", "<eos>", "<end_of_turn>"),
    ),
    "phi3": (
        PHI3,
        ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        (),
        *("<s>", "<|endoftext|>", "<|end|>"),
    ),
    "mistral": (
        MISTRAL,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        (),
        *("<s>", "</s>", "</s>"),
    ),
    "qwen3": (QWEN3, IM, ("<think>", "</think>"), None, "<|im_end|>", "<|im_end|>"),
}


def byte_level(marks, words=()):
    """A small byte-level BPE with the marks as special tokens and the words as added ones."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(TEXT, trainer)
    raw.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    raw.add_tokens([AddedToken(word, special=False) for word in words])
    return raw


def sentencepiece(marks, words=()):
    """A BPE as converted from SentencePiece: a leading space, ▁ for spaces, bytes as a fallback."""
    from tokenizers import normalizers

    pieces = ["<unk>", *(f"<0x{n:02X}>" for n in range(256))]
    letters = sorted(set("".join(TEXT)) - {" ", "\n"} | {"▁"})
    merges = [("▁", "h"), ("▁h", "i"), ("▁", "T"), ("l", "l")]
    vocabulary = [*pieces, *letters, *("".join(pair) for pair in merges)]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}
    raw = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    raw.decoder = decoders.Sequence(steps)
    raw.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    raw.add_tokens([AddedToken(word, special=False) for word in words])
    return raw


def write_folder(folder, family, make=byte_level, **more):
    """A folder with tokenizer.json and tokenizer_config.json; ``more`` goes into the latter."""
    template, marks, words, bos, eos, _ = FAMILIES[family]
    make(marks, words).save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    about = {**about, "chat_template": template, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def theirs(folder):
    """transformers' tokenizer of the folder."""
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=about["bos_token"],
        eos_token=about["eos_token"],
    )
    tokenizer.chat_template = about["chat_template"]
    return tokenizer
