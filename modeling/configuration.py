"""SeekletConfig: the published DeepSeek-V3 config, validated, plus a few training settings that others ignore."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from .errors import ConfigError

# What the published format calls each of our classes; other engines choose their model by this name.
PUBLISHED_ARCHITECTURES = {
    "SeekletModel": "DeepseekV3Model",
    "SeekletForCausalLM": "DeepseekV3ForCausalLM",
    "SeekletForSequenceClassification": "DeepseekV3ForSequenceClassification",
    "SeekletForTokenClassification": "DeepseekV3ForTokenClassification",
}
PUBLISHED_MODEL_TYPE = "deepseek_v3"
# Of the checkpoints that are read as ours: the published name, and Kimi-K2's text model, the same architecture.
READ_MODEL_TYPES = (PUBLISHED_MODEL_TYPE, "kimi_k2")

# Field -> smallest allowed value. `None` is allowed only where OPTIONAL_FIELDS says so.
INTEGER_FIELDS = {
    "vocab_size": 1,
    "hidden_size": 1,
    "intermediate_size": 1,
    "moe_intermediate_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "n_shared_experts": 0,
    "n_routed_experts": 1,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "kv_lora_rank": 1,
    "q_lora_rank": 1,
    "qk_nope_head_dim": 1,
    "qk_rope_head_dim": 2,
    "v_head_dim": 1,
    "max_position_embeddings": 1,
    "num_nextn_predict_layers": 0,
}
OPTIONAL_FIELDS = {"q_lora_rank"}
NON_NEGATIVE_FIELDS = (
    "rms_norm_eps",
    "routed_scaling_factor",
    "initializer_range",
    "attention_dropout",
    "mtp_loss_weight",
    "balance_loss_weight",
    "bias_update_speed",
)
BOOLEAN_FIELDS = ("norm_topk_prob", "rope_interleave", "attention_bias", "tie_word_embeddings", "use_cache")
CHOICE_FIELDS = {
    "scoring_func": ("sigmoid", "softmax"),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
    "hidden_act": ("silu",),
}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
# Rope type -> numbers it cannot do without.
ROPE_FACTORS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


class SeekletConfig(PreTrainedConfig):
    """Configuration of a DeepSeek-V3-architecture model: a strict superset of the published `config.json`.

    On disk it is a DeepSeek-V3 config (`model_type: deepseek_v3`, `architectures: [DeepseekV3ForCausalLM]`) with every
    key that vLLM, SGLang, llama.cpp and Ollama read. In memory `model_type` is `seeklet`, so that special cases which
    libraries key on `deepseek_v3` do not fire on our classes.

    Fields carry the published names (DeepSeek-V3 report, section 4.2, gives the sizes of V3). Ours, which others
    ignore:

    - `mtp_loss_weight`: lambda of the multi-token-prediction loss (section 2.2, equation 25; 0.1 at the end of V3's
      training). Counts in training mode only.
    - `balance_loss_weight`: alpha of the sequence-wise balance loss (section 2.1.2, equation 17; 1e-4).
    - `bias_update_speed`: gamma of the router-bias update (section 2.1.2; 1e-3). 0 freezes the bias.

    `n_group` and `topk_group` may be null (no group limit), `q_lora_rank` null (queries projected directly),
    `n_shared_experts` null or 0 (no shared expert), `num_nextn_predict_layers` is the number of MTP modules.

    Raises:
        ConfigError: a field has a value that is not allowed, or an unsupported relative of the architecture is asked
            for. The message names the field, the value and what is allowed.
    """

    model_type = "seeklet"
    # Trainer takes every other item of an output beside the loss for predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "lm_loss",
        "mtp_loss",
        "balance_loss",
        "expert_load",
    ]
    base_model_tp_plan: ClassVar[dict[str, Any]] = {
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.shared_experts.gate_proj": "colwise",
        "layers.*.mlp.shared_experts.up_proj": "colwise",
        "layers.*.mlp.shared_experts.down_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    base_model_ep_plan: ClassVar[dict[str, Any]] = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    attribute_map: ClassVar[dict[str, str]] = {
        "num_local_experts": "n_routed_experts",
        "num_mtp_layers": "num_nextn_predict_layers",
    }

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    num_key_value_heads: int | None = None
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    first_k_dense_replace: int = 3
    moe_layer_freq: int = 1
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    output_router_logits: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    tie_word_embeddings: bool = False
    rope_parameters: Any = None
    rope_interleave: bool = True
    attention_bias: bool = False
    attention_dropout: float = 0.0
    num_nextn_predict_layers: int = 0
    mtp_loss_weight: float = 0.1
    balance_loss_weight: float = 1e-4
    bias_update_speed: float = 1e-3

    def __post_init__(self, **kwargs):
        for alias in ("num_mtp_layers", "num_local_experts"):
            if alias in kwargs:
                setattr(self, self.attribute_map[alias], kwargs.pop(alias))
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.n_shared_experts = self.n_shared_experts or 0
        if self.n_group is None:
            self.n_group, self.topk_group = 1, 1
        elif self.topk_group is None:
            self.topk_group = self.n_group
        if self.num_nextn_predict_layers is None:
            self.num_nextn_predict_layers = 0
        self.validate_fields()
        self.qk_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        # transformers' rope functions read the rotary size from `head_dim`.
        self.head_dim = self.qk_rope_head_dim
        super().__post_init__(**kwargs)
        self._validate_rope()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Return what stands in a `config.json`, with our `model_type`, so that transformers warns of no mismatch."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") in READ_MODEL_TYPES:
            config_dict = {**config_dict, "model_type": cls.model_type}
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Return the config of a published `config.json`; its `model_type` and `architectures` become ours."""
        renamed = {**config_dict, "model_type": cls.model_type}
        ours = {published: name for name, published in PUBLISHED_ARCHITECTURES.items()}
        if config_dict.get("architectures"):
            renamed["architectures"] = [ours.get(name, name) for name in config_dict["architectures"]]
        if "rope_theta" in (config_dict.get("rope_parameters") or {}):
            # The legacy keys beside it, which `to_dict` writes for older loaders, say the same in another way.
            renamed.pop("rope_scaling", None)
            renamed.pop("rope_theta", None)
        return super().from_dict(renamed, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the published form: DeepSeek-V3 names, legacy rope keys, and nothing tied to this machine."""
        output = super().to_dict()
        output["model_type"] = PUBLISHED_MODEL_TYPE
        if output.get("architectures"):
            output["architectures"] = [PUBLISHED_ARCHITECTURES.get(name, name) for name in output["architectures"]]
        # Older loaders (Ollama, llama.cpp, vLLM's hf_overrides) read these two instead of `rope_parameters`.
        rope = dict(self.rope_parameters or {})
        output["rope_theta"] = rope.pop("rope_theta", self.default_theta)
        rope_type = rope.pop("rope_type", "default")
        output["rope_scaling"] = None if rope_type == "default" else {"type": rope_type, "rope_type": rope_type, **rope}
        for key in ("auto_map", "name_or_path", "_name_or_path", "qk_head_dim", "head_dim"):
            output.pop(key, None)
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what is written to `config.json`: everything that `to_dict` has, defaults of others left out."""
        output = super().to_diff_dict()
        full = self.to_dict()
        # Engines have defaults of their own for these, so they are written even where they equal ours.
        for key in ("rope_theta", "rope_scaling", "tie_word_embeddings", "num_nextn_predict_layers", "architectures"):
            output[key] = full[key]
        for key in ("auto_map", "qk_head_dim", "head_dim"):
            output.pop(key, None)
        return output

    def validate_fields(self) -> None:
        """Raise ConfigError for the first field that is not allowed; called at construction and by every model."""
        for field, allowed in CHOICE_FIELDS.items():
            if getattr(self, field) not in allowed:
                raise _config_error(field, getattr(self, field), " or ".join(repr(value) for value in allowed))
        for field, smallest in INTEGER_FIELDS.items():
            value = getattr(self, field)
            if value is None and field in OPTIONAL_FIELDS:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise _config_error(field, value, f"an integer >= {smallest}")
        for field in NON_NEGATIVE_FIELDS:
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise _config_error(field, value, "a finite number >= 0")
        for field in BOOLEAN_FIELDS:
            if not isinstance(getattr(self, field), bool):
                raise _config_error(field, getattr(self, field), "true or false")
        self._validate_relations()

    def _validate_relations(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise _config_error("qk_rope_head_dim", self.qk_rope_head_dim, "an even number")
        if self.num_key_value_heads != self.num_attention_heads:
            allowed = f"num_attention_heads ({self.num_attention_heads}): latent attention expands keys for every head"
            raise _config_error("num_key_value_heads", self.num_key_value_heads, allowed)
        if self.n_routed_experts % self.n_group:
            raise _config_error("n_group", self.n_group, f"a divisor of n_routed_experts ({self.n_routed_experts})")
        if self.topk_group > self.n_group:
            raise _config_error("topk_group", self.topk_group, f"at most n_group ({self.n_group})")
        reachable = self.topk_group * (self.n_routed_experts // self.n_group)
        if self.num_experts_per_tok > reachable:
            allowed = f"at most {reachable}, the experts in topk_group ({self.topk_group}) groups"
            raise _config_error("num_experts_per_tok", self.num_experts_per_tok, allowed)
        if self.attention_dropout >= 1:
            raise _config_error("attention_dropout", self.attention_dropout, "a number in [0, 1)")

    def _validate_rope(self) -> None:
        rope: dict[str, Any] = {"rope_type": "default", **(self.rope_parameters or {})}
        if rope["rope_type"] not in ROPE_TYPES:
            raise _config_error("rope_parameters.rope_type", rope["rope_type"], " or ".join(map(repr, ROPE_TYPES)))
        theta = rope.get("rope_theta")
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < float("inf"):
            raise _config_error("rope_parameters.rope_theta", theta, "a number > 0")
        for field in ROPE_FACTORS.get(rope["rope_type"], ()):
            factor = rope.get(field)
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < float("inf"):
                raise _config_error(f"rope_parameters.{field}", factor, "a number >= 1")


def _config_error(field: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"config field {field} is {value!r}; allowed: {allowed}")
