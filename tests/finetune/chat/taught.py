"""What nano models are taught to say, and how they are."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.template import served_template
from seeklet.finetune.data.tokenize_rows import RowTokenizer, TokenRow
from tests.finetune.data.chats import shipped

TAUGHT = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "**4** 🙂", "reasoning_content": "Two and two.\n\nThat is 4 漢."},
    {"role": "user", "content": "And one more?"},
    {"role": "assistant", "content": "5"},
]
REASONING, ANSWER = TAUGHT[1]["reasoning_content"], TAUGHT[1]["content"]


def teach(folder: Path, template: str, chat: list[dict[str, Any]]) -> None:
    """Train the model in `folder` on a chat until it says it by heart."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    [row] = RowTokenizer(tokenizer, shipped(template), 1000)([Row(chat, None, Source("a", 1))])
    assert isinstance(row, TokenRow)
    ids = torch.from_numpy(row.input_ids).long()[None]
    labels = torch.where(torch.from_numpy(row.assistant_mask).bool(), ids, -100)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    assert model(input_ids=ids, labels=labels).loss < 0.05
    model.save_pretrained(folder)
    tokenizer.chat_template = served_template(shipped(template))
    tokenizer.save_pretrained(folder)
