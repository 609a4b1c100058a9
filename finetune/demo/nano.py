"""The demo's model: every part of DeepSeek-V3's architecture, at about half a million parameters."""

from seeklet.modeling import SeekletConfig, SeekletForCausalLM

from .tokenizer import BOS, EOS, PAD, VOCABULARY

# The longest conversation of the task is 79 tokens.
MAX_POSITIONS = 128


def nano_config() -> SeekletConfig:
    """Return the config of the nano model for the demo's tokenizer: 8 experts of which 2 are used, MLA, one MTP module.

    One main layer is dense, as the first layers of V3 are. Five narrow main layers rather than fewer wide ones: an
    MTP draft costs one layer, so the deeper the model, the more of it a draft that is accepted saves.
    """
    return SeekletConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=80,
        intermediate_size=160,
        moe_intermediate_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        q_lora_rank=40,
        kv_lora_rank=24,
        qk_nope_head_dim=20,
        qk_rope_head_dim=8,
        v_head_dim=20,
        first_k_dense_replace=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        num_nextn_predict_layers=1,
        # V3's weight for most of its training. With it 98 % of the module's tokens were right after 700 steps.
        mtp_loss_weight=0.3,
        max_position_embeddings=MAX_POSITIONS,
        # V3's 0.006 is for 7168 wide. Four layers, 96 wide, without MTP, reached 98 % validation accuracy in 1,000
        # steps with 0.06, and 85 % with 0.02 (one seed each).
        initializer_range=0.06,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
    )


def count_parameters(model: SeekletForCausalLM) -> dict[str, int]:
    """Return the number of parameters: `total`, those of the `mtp` module, and those `active_per_token`.

    Active are the main model's, without the routed experts that a token is not sent to and without the MTP module.
    """
    config = model.config
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    mtp_layers = tuple(f"model.layers.{index}." for index in _mtp_layers(config))
    mtp = sum(size for name, size in sizes.items() if name.startswith(mtp_layers))
    routed = sum(size for name, size in sizes.items() if ".experts." in name and not name.startswith(mtp_layers))
    idle = routed * (config.n_routed_experts - config.num_experts_per_tok) // config.n_routed_experts
    total = sum(sizes.values())
    return {"total": total, "mtp": mtp, "active_per_token": total - mtp - idle}


def moe_layer_names(model: SeekletForCausalLM) -> list[str]:
    """Return a name per MoE layer, in the order in which `update_router_bias` returns their loads."""
    config = model.config
    main = [f"layer {index}" for index in range(config.first_k_dense_replace, config.num_hidden_layers)]
    return main + [f"MTP {depth}" for depth, _ in enumerate(_mtp_layers(config), start=1)]


def _mtp_layers(config: SeekletConfig) -> range:
    return range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
