"""Bases on disk, in Hugging Face's layout: config.json, model.safetensors, tokenizer.json.

``load_base()`` opens the small Llama that ships with the package; ``load_base(folder)`` opens any
folder of the Llama family: Llama, Mistral, Qwen 2 and 3. ``save_model`` writes the same three
files, which transformers and vLLM open as they are.

Loading is strict. A missing tensor, one too many, a wrong shape, or a feature that
``model/transformer.py`` does not have is an error, raised before any model is built in memory, and
it names everything that is wrong. Only safetensors are read, never a pickle.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import finish_swap, json_writer, read_json, write_together
from ..formats.bitsandbytes_4bit import from_checkpoint, packed_names, to_checkpoint
from ..nf4.codebook import codebook
from ..nf4.linear import NF4Linear
from ..nf4.tensor import NF4Tensor
from ..nf4.tensor import quantize as quantize_weight
from ..tensor_files import TensorFiles
from .config_json import config_json_of, kept_companions, llama_config
from .foreign import save_foreign
from .tokenizer_files import TOKENIZER_FILES, load_tokenizer, tokenizer_files
from .tokenizer_folder import GENERATION_FILE, read_companions
from .transformer import Llama, LlamaConfig
from .weights import (
    check_sizes,
    check_tensors,
    has_head_of_its_own,
    linear_weights,
    read_weights,
    size_in_bytes,
    stale_weights,
    weight_files,
)

SHIPPED = Path(__file__).parent / "base"


def load_base(
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
) -> Llama:
    """The shipped base, or the Llama-family model in ``folder``: ready to adapt and to answer.

    Weights are converted to ``dtype``, whatever they are stored in. ``quantize="nf4"`` (or
    ``"fp4"``, ``"int4"``) turns each Linear but the head into four bits as it is read, so memory
    never holds more than one of them in floats. A folder saved in four bits is opened in four bits
    without it. Raises ``ValueError`` that names everything that does not fit.

    >>> model = load_base()
    >>> model.config.hidden_size
    128
    """
    folder = SHIPPED if folder is None else Path(folder)
    check_dtype(dtype)
    if quantize is not None:
        codebook(quantize)
    finish_swap(folder)
    if not (folder / "config.json").is_file():
        problem = "holds no config.json" if folder.is_dir() else "is not a folder on this machine"
        raise ValueError(
            f"{folder} {problem}: a base is a folder with config.json, model.safetensors and "
            "tokenizer.json, and nothing is downloaded"
        )
    config_json = read_json(folder / "config.json")
    config = llama_config(config_json, folder)
    tensors = read_weights(folder)
    check_sizes(config, tensors, folder)
    if config.tie_word_embeddings and has_head_of_its_own(tensors):  # as in transformers 5
        config = replace(config, tie_word_embeddings=False)
    # shapes only: no memory, and no time spent on an initialisation that is thrown away
    with torch.device("meta"):
        model = Llama(config)
    fill_model(model, tensors, check_tensors(model, tensors, folder), dtype, device, quantize)
    if (folder / "tokenizer.json").is_file():
        model.tokenizer = load_tokenizer(folder, config.vocab_size)
    model.companions = read_companions(folder)
    model.name_or_path = str(folder.resolve())  # whoever opens an adapter may stand elsewhere
    return model.eval()


def fill_model(
    model: Llama,
    tensors: TensorFiles,
    names: list[str],
    dtype: torch.dtype,
    device: str | torch.device,
    quantize: str | None,
) -> None:
    """Give a model without storage its weights, one tensor at a time.

    Linears whose weights are stored in four bits, or are to be quantized, become ``NF4Linear``.
    """
    packed, floats = packed_names(list(tensors)), {}
    linears = linear_weights(model) - {"lm_head.weight"}
    for name in names:
        if name in packed:
            stored = from_checkpoint(name, tensors, tuple(model.get_parameter(name).shape))
            if quantize not in (None, stored.kind):
                raise ValueError(
                    f"{name} is stored in {stored.kind}, so it cannot be loaded in {quantize}: "
                    "load a float checkpoint"
                )
            weight = replace(stored, dtype=dtype)
        elif quantize is not None and name in linears:
            in_floats = tensors[name].to(device=device, dtype=dtype)
            weight = quantize_weight(in_floats, kind=quantize)
        else:
            floats[name] = tensors[name].to(device=device, dtype=dtype)
            check_finite(name, floats[name])
            continue
        path = name.removesuffix(".weight")
        layer = NF4Linear.from_quantized(weight).to(device)
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        layer.bias = linear.bias  # without storage still
        model.set_submodule(path, layer)
    if model.config.tie_word_embeddings:
        floats["lm_head.weight"] = floats["model.embed_tokens.weight"]
    # missing are the codes and scales, which stand already; check_tensors has compared the names
    unknown = model.load_state_dict(floats, assign=True, strict=False).unexpected_keys
    assert not unknown, unknown
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.requires_grad_(not packed and quantize is None)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` for NaN and infinities: with them every answer would be nonsense."""
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"{name} holds values that are not finite in {tensor.dtype}: load it in bfloat16 or "
            "float32, or mend the file"
        )


def check_dtype(dtype: object) -> None:
    """Raise ``ValueError`` unless weights can be of this dtype."""
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    meant = f": did you mean {named}?" if isinstance(named, torch.dtype) else ""
    raise ValueError(
        "dtype must be a floating-point dtype of torch, such as torch.bfloat16, "
        f"got {dtype!r}{meant}"
    )


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard: str | int | None = None,
) -> Path:
    """Write a plain model as a Hugging Face folder, which transformers and vLLM open as it is.

    The folder holds ``config.json``, ``model.safetensors`` and, where the model has a tokenizer,
    ``tokenizer.json`` and ``tokenizer_config.json``. The base's chat template, its first, last and
    padding tokens and its ``generation_config.json`` are kept. Tied weights are stored once.
    ``dtype`` converts on the way (``torch.float16`` halves a float32 file). ``shard`` ("2GB", or a
    number of bytes) cuts weights beyond that size into several files with an index. A model that is
    already in the folder is replaced whole or not at all (``write_together``). A model of
    transformers is written by its own ``save_pretrained``, with the tokenizer that it was given
    (``add_tokenizer``). Raises ``ValueError`` when adapters are still inside: ``merge_and_unload``
    first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in save_model(load_base(), folder).iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    if dtype is not None:
        check_dtype(dtype)
    config = getattr(model, "config", None)
    if not isinstance(model, Llama) or not isinstance(config, LlamaConfig):
        return save_foreign(model, Path(folder), dtype, shard)
    limit = None if shard is None else size_in_bytes(shard)
    tensors, quantized, tied = float_tensors(model), packed_weights(model), is_tied(model)
    check_plain(config, tensors.keys() | quantized.keys(), tied)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"{bad[0]} holds values that are not finite{f' in {dtype}' if dtype else ''}: "
            "save in float32, or repair it"
        )
    stored = next(iter(tensors.values())).dtype
    for name, weight in quantized.items():
        tensors |= to_checkpoint(name, replace(weight, dtype=stored))
    about = config_json_of(model, stored, tied, next(iter(quantized.values()), None))
    files = weight_files(tensors, limit)
    if model.tokenizer is not None:
        files |= tokenizer_files(model.tokenizer)
    if generation := kept_companions(model).generation_config:
        files[GENERATION_FILE] = json_writer(generation)
    files["config.json"] = json_writer(about)
    known = ["config.json", GENERATION_FILE, *TOKENIZER_FILES]
    stale = [*known, *stale_weights(Path(folder), files)]
    write_together(Path(folder), files, remove=stale)
    return Path(folder)


def check_plain(config: LlamaConfig, names: Set[str], tied: bool) -> None:
    """Raise ``ValueError`` unless these are the names of a Llama's weights, and no others."""
    with torch.device("meta"):
        expected = Llama(config).state_dict().keys() - ({"lm_head.weight"} if tied else set())
    if wrong := sorted(names ^ expected):
        if all(
            n.endswith(".bias") and f"{n.removesuffix('bias')}weight" in expected for n in wrong
        ):
            raise ValueError(
                f"this Llama has biases that its config does not have, such as {wrong[0]!r}; a "
                "merged BitFit adds them. Train it on a base whose config has attention_bias=True "
                "and mlp_bias=True, or keep it apart: save_adapter(model, folder) before the merge"
            )
        problem = "missing" if wrong[0] in expected else "unexpected"
        raise ValueError(
            f"this model is not a plain Llama: {wrong[0]!r} is {problem}. If an adapter is still "
            "inside, call merge_and_unload(model) or unload(model) first, or "
            "save_adapter(model, folder) to keep it apart"
        )


def float_tensors(model: Llama) -> dict[str, Tensor]:
    """The tensors of a model that are kept in floats, by name in a checkpoint; tied ones once."""
    left_out = {
        f"{name}.{part}"
        for name, m in model.named_modules()
        if isinstance(m, NF4Linear)
        for part in m._buffers
    }
    if is_tied(model):
        left_out.add("lm_head.weight")
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


def is_tied(model: Llama) -> bool:
    """Whether the head *is* the embedding now, whatever the model's config says."""
    return model.lm_head._parameters.get("weight") is model.model.embed_tokens.weight


def packed_weights(model: Llama) -> dict[str, NF4Tensor]:
    """The weights of a model that are kept in four bits, by name in a checkpoint."""
    modules = model.named_modules()
    return {f"{name}.weight": m.quantized for name, m in modules if isinstance(m, NF4Linear)}
