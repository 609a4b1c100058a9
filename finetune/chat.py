"""A chat with a model: what is in a folder loaded, the conversation kept, answers streamed apart from reasoning."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from seeklet.modeling import SeekletConfig
from seeklet.modeling.errors import GenerationError

from .data.rows import Message
from .data.template import ChatTemplate, choose_template, own_template, render, shipped_templates
from .errors import RecipeError
from .evaluation.models import TRAINED, has_tokenizer, is_adapter, is_model, load_model, load_tokenizer
from .evaluation.questions import end_tokens
from .lora.files import load_adapter, read_config
from .lora.merge import find_base
from .reasoning import Completion, Piece, ReasoningStream, opens_reasoning
from .recipe import ModelSettings


class Loaded(NamedTuple):
    """A model to chat with, its adapter attached where it has one, and its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatSettings:
    """How answers are written."""

    max_new_tokens: int = 4096
    """Tokens of reasoning and answer together; fewer where the model's context ends before."""
    temperature: float | None = None
    """0 takes the likeliest token each time; None does what the checkpoint's generation config says."""
    use_mtp: bool = False
    """Whether multi-token prediction drafts, which changes the speed alone."""


class Reply(NamedTuple):
    """What the model answered, and how."""

    completion: Completion
    num_tokens: int
    seconds: float
    ending: Literal["finished", "limit", "interrupted"]


def load(
    path: str,
    base: str | None = None,
    trust_remote_code: bool = False,
    quantization: Literal["nf4", "fp4", "int8"] | None = None,
) -> Loaded:
    """Return the model in a folder or on the Hub, the base model of an adapter's folder with the adapter, or what was
    trained last in a run's folder; on the GPUs there are.

    Raises:
        GenerationError: there is nothing of these, or it cannot be loaded.
        AdapterError: the adapter's base is not found, or the adapter does not fit it.
        CheckpointError: the files are damaged.
    """
    place = _find(path)
    adapter = Path(place) if is_adapter(Path(place)) else None
    source, tokenizer = place, None
    if adapter is not None:
        config = read_config(adapter)
        source = str(find_base(base or config.base_model_name_or_path, config.revision, adapter))
        tokenizer = place if has_tokenizer(adapter) else None
    elif base is not None:
        raise GenerationError(f"--base is {base}, but {path} is no adapter's folder; allowed: --base with an adapter")
    settings = ModelSettings(
        path=source, tokenizer=tokenizer, trust_remote_code=trust_remote_code, quantization=quantization
    )
    try:
        # The tokenizer first: what is wrong with it is to be said before minutes of loading.
        found, model = load_tokenizer(settings), load_model(settings)
    except RecipeError as error:
        # There is no recipe here whose keys it could name.
        raise GenerationError(str(error).removeprefix("model.path: ").removeprefix("model: ")) from error
    return Loaded(load_adapter(model, adapter).eval() if adapter else model, found)


def _find(path: str) -> str:
    """Return the folder of a model or of an adapter that `path` means, or `path` itself where it may be on the Hub.

    Raises:
        GenerationError: it is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        for found in (folder, *(folder / name for name in TRAINED)):
            if is_adapter(found) or is_model(found):
                return str(found)
        raise GenerationError(
            f"{path} holds no model (config.json), no adapter (adapter_config.json), and no run of seeklet train "
            f"({', '.join(TRAINED)})"
        )
    is_local = folder.is_absolute() or path.startswith(".") or path.count("/") > 1
    if is_local or folder.exists() or (folder.parent != Path() and folder.parent.is_dir()):
        raise GenerationError(f"{path} is no folder; allowed: a folder with a model or an adapter, or a model's Hub id")
    return path


def chat_template(tokenizer: PreTrainedTokenizerBase, wanted: str | None = None) -> ChatTemplate:
    """Return the template to chat by: a shipped one by name, one in a file, or the tokenizer's own.

    Raises:
        GenerationError: none is wanted, and the tokenizer has none.
        DataError: there is no such template, or it cannot be run.
    """
    if wanted is None and own_template(tokenizer) is None:
        raise GenerationError(
            "the tokenizer has no chat template, as is usual for base models; name one with --chat-template: "
            f"{', '.join(shipped_templates())}, or the path of a .jinja file"
        )
    return choose_template(tokenizer, wanted, assistant_only=False)


class Chat:
    """A conversation with a model, which `reply` goes on with.

    Raises:
        GenerationError: multi-token prediction is asked for, and the model has none.
    """

    def __init__(
        self,
        loaded: Loaded,
        template: ChatTemplate,
        settings: ChatSettings | None = None,
        system: str | None = None,
    ):
        self.model, self.tokenizer = loaded
        self.template = template
        self.settings = settings or ChatSettings()
        self.system = system
        self.messages: list[Message] = []
        self._ends = end_tokens(self.tokenizer, self.model.generation_config, _turn_ends(self.tokenizer, template))
        config = self.model.config
        if self.settings.use_mtp and not (isinstance(config, SeekletConfig) and config.num_nextn_predict_layers):
            raise GenerationError(
                f"--use-mtp: this {config.model_type} has no multi-token prediction modules; allowed: DeepSeek-V3-"
                "architecture models with them"
            )

    def reset(self, system: str | None) -> None:
        """Forget what was said, and begin again with this system message."""
        self.system = system
        self.messages = []

    def reply(self, text: str, on_piece: Callable[[Piece], None] = lambda piece: None) -> Reply:
        """Return the model's reply to `text`, after passing it to `on_piece` bit by bit; both are kept as said.

        Reasoning is kept in a field of its own: whether the model sees that of earlier turns is the template's choice.
        Ctrl-C ends the reply where it is.

        Raises:
            GenerationError: the template refuses the conversation, it is too long, or memory is full; then `text` is
                not kept.
        """
        asked: Message = {"role": "user", "content": text}
        prompt = self._prompt([*self.messages, asked])
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert isinstance(ids, torch.Tensor)
        limit = self._room(ids.shape[1])
        writing = _Writing(self.tokenizer, self._ends, ReasoningStream(opens_reasoning(prompt)), on_piece)
        start = time.perf_counter()
        interrupted = False
        try:
            self._generate(ids, limit, writing)
        except KeyboardInterrupt:
            interrupted = True
        except torch.OutOfMemoryError as error:
            raise GenerationError("the GPU's memory is full; /reset, or lower --max-new-tokens") from error
        completion = writing.close()
        seconds = time.perf_counter() - start
        answer: Message = {"role": "assistant", "content": completion.answer}
        if completion.reasoning:
            answer["reasoning_content"] = completion.reasoning
        self.messages += [asked, answer]
        ending = "interrupted" if interrupted else "finished" if writing.finished else "limit"
        return Reply(completion, writing.num_tokens, seconds, ending)

    def _prompt(self, messages: list[Message]) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            return render(self.tokenizer, self.template, system + messages, add_generation_prompt=True).text
        except TemplateError as error:
            raise GenerationError(f"the chat template {self.template.name} refuses this chat: {error}") from error

    def _room(self, num_tokens: int) -> int:
        """Return how many tokens may follow `num_tokens` of prompt."""
        context = getattr(self.model.config, "max_position_embeddings", None)
        if context is None:
            return self.settings.max_new_tokens
        if num_tokens >= context:
            raise GenerationError(
                f"the chat is {num_tokens:,} tokens long; the model takes {context:,}. /reset begins again"
            )
        return min(self.settings.max_new_tokens, context - num_tokens)

    def _generate(self, ids: torch.Tensor, limit: int, writing: "_Writing") -> None:
        ids = ids.to(self.model.get_input_embeddings().weight.device)
        options: dict[str, Any] = {"use_mtp": True} if self.settings.use_mtp else {}
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            # As a limit in the checkpoint's generation_config would count the prompt too.
            max_length=None,
            num_beams=1,
            eos_token_id=sorted(self._ends),
            pad_token_id=min(self._ends),
            streamer=writing,
            **_sampling(self.model, self.settings.temperature),
            **options,
        )


class _Writing(BaseStreamer):
    """Takes tokens as they are generated, and passes them on as pieces of reasoning and answer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        stream: ReasoningStream,
        on_piece: Callable[[Piece], None],
    ):
        self.num_tokens = 0
        self.finished = False
        self._tokenizer = tokenizer
        self._ends = ends
        self._stream = stream
        self._on_piece = on_piece
        self._texts = {"reasoning": "", "answer": ""}
        self._prompt_passed = False
        # Tokens whose text is out, kept for those that follow: how a token reads may depend on the one before.
        self._told: list[int] = []
        self._untold: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt the first time, then tokens that follow it."""
        if not self._prompt_passed:
            self._prompt_passed = True
            return
        for token in value.flatten().tolist():
            self.num_tokens += 1
            self.finished = token in self._ends
            if not self.finished:
                self._untold.append(token)
                self._tell(whole=False)

    def end(self) -> None:
        """Take note that nothing follows; `close` does what is left to do."""

    def close(self) -> Completion:
        """Pass on what was held back, and return all of it."""
        self._tell(whole=True)
        self._pass_on(self._stream.close())
        return Completion(self._texts["reasoning"], self._texts["answer"])

    def _tell(self, whole: bool) -> None:
        told = self._text(self._told)
        text = self._text(self._told + self._untold)
        # A character may be made up of several tokens; cut off at the end, it is what it is.
        if self._untold and (whole or not text.endswith("\ufffd")):
            self._told, self._untold = self._untold, []
            self._pass_on(self._stream.feed(text[len(told) :]))

    def _text(self, tokens: list[int]) -> str:
        # Some tokenizers count <think> among the special tokens.
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def _pass_on(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._texts[piece.kind] += piece.text
            self._on_piece(piece)


def _turn_ends(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> list[int]:
    """Return the token that the template ends an answer with, which a base model's own end may not be."""
    chat: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    try:
        text = render(tokenizer, template, chat).text.rstrip()
    except TemplateError:
        return []
    return tokenizer.encode(text, add_special_tokens=False)[-1:]


def _sampling(model: PreTrainedModel, temperature: float | None) -> dict[str, Any]:
    if temperature is None and model.generation_config and model.generation_config.do_sample:
        return {}
    if temperature:
        return {"do_sample": True, "temperature": temperature}
    # What only sampling reads is said, so that other values in the checkpoint's generation_config bring no warning.
    return {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
