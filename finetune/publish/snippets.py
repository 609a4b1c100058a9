"""What a reader of a card copies to run the model: transformers, vLLM, Ollama."""

from pathlib import Path

from .source import Source


def usage(repo_id: str, source: Source, folder: Path) -> str:
    """Return the snippets for the model or adapter in `folder`, as it is called on the Hub."""
    is_whole = (folder / "config.json").is_file()
    has_template = (folder / "chat_template.jinja").is_file() or '"chat_template"' in _read(
        folder / "tokenizer_config.json"
    )
    parts = ["```python\n" + (_transformers(repo_id, has_template) if is_whole else _peft(repo_id, source)) + "\n```"]
    if is_whole:
        parts.append(f"With vLLM:\n\n```bash\nvllm serve {repo_id}\n```")
        parts.append(
            "With Ollama, after conversion to GGUF by llama.cpp:\n\n```bash\n"
            f"hf download {repo_id} --local-dir model\n"
            "python llama.cpp/convert_hf_to_gguf.py model --outfile model.gguf --outtype q8_0\n"
            "printf 'FROM ./model.gguf\\n' > Modelfile\n"
            f"ollama create {repo_id.rpartition('/')[2].lower()} -f Modelfile\n```"
        )
    if (folder / "adapter").is_dir() and source.base_name:
        parts.append(
            "The adapter alone, beside the base, with one pair of factors for every expert:\n\n```bash\n"
            f"hf download {repo_id} --include 'adapter/*' --local-dir .\n"
            f"vllm serve {source.base_name} --enable-lora --lora-modules tuned=./adapter\n```"
        )
    return "\n\n".join(parts)


def _transformers(repo_id: str, has_template: bool) -> str:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
        f'model = AutoModelForCausalLM.from_pretrained("{repo_id}", dtype="auto")',
    ]
    if has_template:
        lines += [
            'messages = [{"role": "user", "content": "Hello!"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines.append('inputs = tokenizer("Hello!", return_tensors="pt")')
    return "\n".join(
        [
            *lines,
            "output = model.generate(**inputs, max_new_tokens=256)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))',
        ]
    )


def _peft(repo_id: str, source: Source) -> str:
    base = source.base_name or "OWNER/BASE"
    return "\n".join(
        [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
            f'model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")',
            f'model = PeftModel.from_pretrained(model, "{repo_id}")',
        ]
    )


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
