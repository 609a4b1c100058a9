"""The demo's models: a teacher with every part of DeepSeek-V3's architecture, and a small dense student."""

from transformers import LlamaConfig

from seeklet.modeling import SeekletConfig

from .tokenizer import BOS, EOS, PAD, VOCABULARY

# Conversations of the task are packed into rows of this length; the longest has 79 tokens.
MAX_POSITIONS = 256


def teacher_config() -> SeekletConfig:
    """Return the config of the teacher, for the demo's tokenizer: 8 experts of which 2 are used, MLA, one MTP module.

    One main layer is dense, as the first layers of V3 are. Three wide layers rather than five narrow ones: with more
    depth the model learns to add up seven numbers without writing anything (two answers in three were right), and
    thinking pays nothing. What is learned last are the single sums; in a wide dense layer they are there after 1,000
    steps with every seed tried, in one half as wide, and wider experts, with every other one.
    """
    return SeekletConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=384,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        q_lora_rank=48,
        kv_lora_rank=32,
        qk_nope_head_dim=24,
        qk_rope_head_dim=8,
        v_head_dim=24,
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


def student_config() -> LlamaConfig:
    """Return the config of the student: a dense Llama of half the teacher's parameters."""
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=304,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
    )
