"""What the licence of the base allows for what is made of it."""

from .findings import Finding, error, warning

# Licences as the Hub names them, of bases by how their names begin; the longest beginning counts.
_KNOWN = {
    "deepseek-ai/DeepSeek-R1": "mit",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "mit",
    "deepseek-ai/DeepSeek-V3-0324": "mit",
    "deepseek-ai/DeepSeek-V3.1": "mit",
    "deepseek-ai/DeepSeek-V3.2": "mit",
    "HuggingFaceTB/SmolLM": "apache-2.0",
    "meta-llama/Llama-3.1": "llama3.1",
    "meta-llama/Llama-3.2": "llama3.2",
    "meta-llama/Llama-3.3": "llama3.3",
    "meta-llama/Meta-Llama-3-": "llama3",
    "meta-llama/Meta-Llama-3.1": "llama3.1",
    "mistralai/Mistral-7B": "apache-2.0",
    "mistralai/Mixtral": "apache-2.0",
    "moonshotai/Moonlight": "mit",
    "Qwen/Qwen2.5-": "apache-2.0",
    "Qwen/Qwen3": "apache-2.0",
    "allenai/OLMo": "apache-2.0",
    "google/gemma": "gemma",
    "microsoft/phi": "mit",
    "microsoft/Phi": "mit",
}
# Of one family, sizes that are under other terms.
_OTHER_TERMS = ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-Coder-3B", "Qwen/Qwen2.5-Math-72B")
# These ask for their notice to be kept, and nothing more.
PERMISSIVE = frozenset(
    ["mit", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "cc-by-4.0", "zlib"]
)
_MEND = "choose one with --license that it allows"


def licence_of(base: str) -> str | None:
    """Return the licence of a base on the Hub by its name, None where it is not known here."""
    if base.startswith(_OTHER_TERMS):
        return "other"
    names = [name for name in _KNOWN if base.startswith(name)]
    return _KNOWN[max(names, key=len)] if names else None


def check_licence(chosen: str | None, base: str | None, base_licence: str | None, public: bool) -> list[Finding]:
    """Return whether the licence chosen for a model goes with that of its base.

    Args:
        chosen: as the Hub names it, or None.
        base: its name, where there is one.
        base_licence: as the Hub names it, or None where it is not known.
        public: whether everybody will see the model: what is unknown is then an error.
    """
    level = error if public else warning
    if base is not None and base_licence is None:
        wrong = f"the licence of the base {base} is not known here, so that nothing says whether it allows this"
        return (
            [level("README.md", "license", wrong, "look it up, and name the model's with --license")]
            if (chosen is None or not public)
            else [warning("README.md", "license", wrong, f"look it up: is {chosen} allowed?")]
        )
    if chosen is None and base_licence is None:
        return [
            level("README.md", "license", "is not said, so that nobody may use the model", "name it with --license")
        ]
    if chosen is None or base_licence is None or chosen == base_licence or base_licence in PERMISSIVE:
        return []
    wrong = f"is {chosen}, and the base {base} is under {base_licence}, whose terms go on to what is made of it"
    return [error("README.md", "license", wrong, f"take --license {base_licence}, or {_MEND}")]
