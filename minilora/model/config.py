"""The shape of a Llama, or of a model of its kin: sizes, switches and what must fit together.

``model/config_json.py`` reads it from a ``config.json``; ``model/transformer.py`` builds it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .rotary import RopeScaling

# The families of these blocks, and the fields below that each of them does not have.
LACKS: dict[str, tuple[str, ...]] = {
    "llama": ("sliding_window", "max_window_layers", "layer_types"),
    "mistral": ("attention_bias", "mlp_bias", "max_window_layers", "layer_types"),
    "qwen2": ("attention_bias", "mlp_bias"),
    "qwen3": ("mlp_bias",),
}


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama, under the field names of Hugging Face's ``config.json``.

    Raises ``ValueError`` when the sizes do not fit each other.

    >>> LlamaConfig(hidden_size=64, num_attention_heads=4).head_dim
    16
    """

    vocab_size: int = 2048
    hidden_size: int = 160
    intermediate_size: int = 432
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 0  # 0: one for each attention head
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    model_type: str = "llama"  # or mistral, qwen2, qwen3
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None  # tokens that a token sees, itself included; None: all
    max_window_layers: int = 0  # so many layers, the first ones, have no window
    layer_types: tuple[str, ...] = ()  # "full_attention" or "sliding_attention", layer by layer

    def __post_init__(self) -> None:
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim == 0:
            if self.hidden_size % max(1, self.num_attention_heads):
                raise ValueError(
                    f"hidden_size={self.hidden_size} must be a multiple of "
                    f"num_attention_heads={self.num_attention_heads}"
                )
            head_dim = self.hidden_size // max(1, self.num_attention_heads)
            object.__setattr__(self, "head_dim", head_dim)
        sizes = {name: value for name, value in asdict(self).items() if type(value) is int}
        sizes["max_window_layers"] += 1  # the only one that may be 0
        if bad := {name: value for name, value in sizes.items() if value < 1}:
            raise ValueError(f"every size of a Llama must be at least 1, got {bad}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: each key/value head serves "
                "a whole group of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even: rotary positions turn pairs of numbers"
            )
        if self.model_type not in LACKS:
            raise ValueError(f"model_type must be one of {list(LACKS)}, got {self.model_type!r}")
        for name in LACKS[self.model_type]:
            if getattr(self, name):
                raise ValueError(f"{self.model_type} has no {name}, got {getattr(self, name)!r}")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, "
                f"but num_hidden_layers is {self.num_hidden_layers}"
            )

    @property
    def qkv_bias(self) -> bool:
        """Whether q, k and v have biases; o has one by ``attention_bias`` alone."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether each head of q and k has an RMSNorm."""
        return self.model_type == "qwen3"

    def window(self, layer: int) -> int | None:
        """How many tokens a token sees in a layer; None: all."""
        if self.layer_types:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None
