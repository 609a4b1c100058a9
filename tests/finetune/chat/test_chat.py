"""A chat with nano models that were taught what to say: turns, reasoning, limits, adapters and drafts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seeklet.finetune.adapter_settings import AdapterSettings
from seeklet.finetune.chat import Chat, ChatSettings, Loaded, chat_template, load
from seeklet.finetune.lora.attach import attach
from seeklet.finetune.lora.files import save_adapter
from seeklet.finetune.reasoning import Completion, Piece
from seeklet.modeling import GenerationError
from tests.finetune.chat.taught import ANSWER, REASONING, TAUGHT, teach
from tests.finetune.nano_checkpoints import build_checkpoint


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V3-architecture model with multi-token prediction, which knows nothing."""
    folder = build_checkpoint("DeepSeek-V3", tmp_path_factory.mktemp("drafting"))
    return folder


def chat_with(folder: Path, template: str | None = None, system: str | None = None, **settings: Any) -> Chat:
    loaded = load(str(folder))
    return Chat(loaded, chat_template(loaded.tokenizer, template), ChatSettings(**settings), system)


def test_turns_are_kept_with_their_reasoning_and_given_by_the_template(taught: Path) -> None:
    chat = chat_with(taught, max_new_tokens=60)
    given: list[str] = []
    generate = chat.model.generate

    def listen(**inputs: Any) -> Any:
        given.append(str(chat.tokenizer.decode(inputs["input_ids"][0])))
        return generate(**inputs)

    chat.model.generate = listen
    assert chat.reply("2 + 2?").completion == Completion(REASONING, ANSWER)
    reply = chat.reply("And one more?")
    assert (reply.completion, reply.num_tokens, reply.ending) == (Completion("", "5"), 2, "finished")
    assert chat.messages == TAUGHT
    expected: Any = chat.tokenizer.apply_chat_template(TAUGHT[:3], tokenize=False, add_generation_prompt=True)
    assert given[1] == expected
    assert f"<think>\n{REASONING}\n</think>\n\n{ANSWER}<|im_end|>" in given[1]
    chat.reset("Be brief.")
    chat.reply("Hi")
    assert given[2] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_pieces_come_as_they_are_written(taught: Path) -> None:
    """Nearly every token is a piece of its own; characters of several tokens are never cut."""
    pieces: list[Piece] = []
    reply = chat_with(taught).reply("2 + 2?", pieces.append)
    assert len(pieces) > reply.num_tokens / 3
    assert "".join(piece.text for piece in pieces if piece.kind == "reasoning") == REASONING
    assert "".join(piece.text for piece in pieces if piece.kind == "answer") == ANSWER
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_reasoning_that_the_prompt_opens(tmp_path: Path) -> None:
    """R1's template ends the prompt in the tag; the model writes the end of it alone."""
    folder = build_checkpoint("Llama-3", tmp_path)
    teach(folder, "deepseek-r1", [TAUGHT[0], {**TAUGHT[1], "content": "4"}])
    reply = chat_with(folder, max_new_tokens=60).reply("2 + 2?")
    assert reply.completion.reasoning == REASONING
    # The template's end of a turn is no token of this model, and so is text.
    assert reply.completion.answer.startswith("4<｜end▁of▁sentence｜>") and reply.ending == "limit"


def test_a_chat_that_fills_the_context(taught: Path) -> None:
    chat = chat_with(taught)
    chat.model.config.max_position_embeddings = 40
    reply = chat.reply("2 + 2?")
    assert reply.ending == "limit" and reply.num_tokens < 40
    with pytest.raises(GenerationError, match=r"the chat is \d+ tokens long; the model takes 40. /reset begins again"):
        chat.reply("And one more?")
    assert len(chat.messages) == 2


def test_ctrl_c_ends_a_reply_and_keeps_what_was_said(taught: Path) -> None:
    chat = chat_with(taught)

    def stop(piece: Piece) -> None:
        if "and" in piece.text:
            raise KeyboardInterrupt

    reply = chat.reply("2 + 2?", stop)
    assert reply.ending == "interrupted" and reply.completion.reasoning.startswith("Two and")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_drafts_change_no_word(drafting: Path, tmp_path: Path) -> None:
    """Nor do they with an adapter."""
    model = attach(
        AutoModelForCausalLM.from_pretrained(drafting), AdapterSettings(rank=4, targets=("attention", "mtp"))
    )
    save_adapter(model, tmp_path)
    for folder in (drafting, tmp_path):
        plain, drafted = (chat_with(folder, use_mtp=use_mtp, max_new_tokens=12).reply("Hi there") for use_mtp in (0, 1))
        assert plain.completion == drafted.completion and plain.num_tokens == drafted.num_tokens == 12


def test_an_adapter_and_a_runs_folder(taught: Path, tmp_path: Path) -> None:
    """The adapter changes what the model says, and its folder names the model."""
    torch.manual_seed(1)
    model: Any = attach(AutoModelForCausalLM.from_pretrained(taught), AdapterSettings(rank=4, targets=("attention",)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2)
    folder = tmp_path / "adapter"
    save_adapter(model, folder)
    AutoTokenizer.from_pretrained(taught).save_pretrained(folder)
    loaded = Loaded(model.eval(), AutoTokenizer.from_pretrained(folder))
    expected = Chat(loaded, chat_template(loaded.tokenizer), ChatSettings(20)).reply("2 + 2?").completion
    assert expected != Completion(REASONING, ANSWER)
    for path in (folder, tmp_path):
        assert chat_with(path, max_new_tokens=20).reply("2 + 2?").completion == expected


def test_a_base_model_that_learned_a_template_ends_by_its_turn(taught: Path) -> None:
    """Its own end is another token than the template's."""
    loaded = load(str(taught))
    loaded.tokenizer.eos_token = "<|endoftext|>"
    loaded.model.generation_config.eos_token_id = loaded.tokenizer.eos_token_id
    reply = Chat(loaded, chat_template(loaded.tokenizer)).reply("2 + 2?")
    assert (reply.completion.answer, reply.ending) == (ANSWER, "finished")
