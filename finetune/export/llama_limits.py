"""Which DeepSeek-V3 models llama.cpp reads as they are meant; of others its converter makes a file all the same.

As in llama.cpp's src/models/deepseek2.cpp, of the version in `fetch_converter`.
"""

from typing import Any

from ..publish.findings import Finding, error

_MEND = "serve it with transformers, vLLM or SGLang instead"
# Models without query compression are known by how many layers they have, the last also by its vocabulary.
_PLAIN_QUERY_LAYERS = (26, 27)
_PLAIN_QUERY_VOCABULARY = (48, 128_256)


def check_limits(config: dict[str, Any]) -> list[Finding]:
    """Return what of a config llama.cpp would refuse to load, or compute otherwise without a word."""
    if config.get("model_type") != "deepseek_v3":
        return []
    found = []
    layers, is_plain = config.get("num_hidden_layers"), config.get("q_lora_rank") is None
    reads_plain = layers in _PLAIN_QUERY_LAYERS or (layers, config.get("vocab_size")) == _PLAIN_QUERY_VOCABULARY
    if is_plain and not reads_plain:
        wrong = f"is null with {layers} layers: llama.cpp expects query compression but in models of 26 or 27 layers"
        found.append(error("config.json", "q_lora_rank", wrong, _MEND))
    elif not is_plain and reads_plain:
        wrong = f"is {config['q_lora_rank']} with {layers} layers: llama.cpp takes such a model for one without"
        found.append(error("config.json", "q_lora_rank", wrong, _MEND))
    if config.get("rope_interleave") is False:
        wrong = "is false: llama.cpp rotates neighbouring numbers, and answers would be wrong"
        found.append(error("config.json", "rope_interleave", wrong, _MEND))
    groups, experts = config.get("n_group"), config.get("n_routed_experts")
    if isinstance(groups, int) and isinstance(experts, int) and groups >= experts:
        wrong = f"is {groups} for {experts} experts: llama.cpp stops where a group is one expert"
        found.append(error("config.json", "n_group", wrong, _MEND))
    return found
