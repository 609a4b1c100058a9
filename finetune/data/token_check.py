"""What only the tokenizer knows of rows: how long they are, how much of them is learned, what it would misread."""

import os
import re
from collections.abc import Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import DataError
from ..hub_reach import is_cache_all, say_not_found
from .problems import Flaw, Problem
from .rows import Row
from .settings import DataSettings
from .stats import TokenStats
from .template import ChatTemplate, choose_template
from .tokenize_rows import RefusedRow, RowTokenizer
from .wording import quoted

# Longer than any row can be: lengths are judged here, after they are counted.
_NO_LIMIT = 1 << 62
_INDEX = re.compile(r"^messages\[(\d+)\]")


class TokenCheck:
    """Tokenises rows as training will, and counts them in `training` and `validation`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, settings: DataSettings):
        self.template = template
        self.training = TokenStats()
        self.validation = TokenStats()
        self.max_tokens = settings.max_tokens
        self._settings = settings
        self._tokenize = RowTokenizer(tokenizer, template, _NO_LIMIT, assistant_only=settings.assistant_only)

    def check(self, rows: Sequence[Row], stats: TokenStats) -> list[list[Flaw]]:
        """Return what is wrong with each of `rows`, and count them in `stats`; a few hundred at a time are fastest."""
        found: list[list[Flaw]] = []
        given = [self._with_system(row) for row in rows]
        for row, whole, made in zip(rows, given, self._tokenize(given), strict=True):
            if isinstance(made, RefusedRow):
                shift = len(whole.messages) - len(row.messages)
                found.append([_as_given(problem, shift) for problem in made.problems])
            else:
                stats.add(made)
                found.append(self._length(len(made.input_ids)))
        return found

    def _length(self, num_tokens: int) -> list[Flaw]:
        if num_tokens <= self.max_tokens:
            return []
        message = f"is {num_tokens:,} tokens long; allowed: {self.max_tokens:,} (max_tokens)"
        return [Flaw("", message, "too-long", "error" if self._settings.on_long == "error" else "warning")]

    def _with_system(self, row: Row) -> Row:
        system = self._settings.system
        if not system or row.messages[0]["role"] == "system":
            return row
        return row._replace(messages=[{"role": "system", "content": system}, *row.messages])


def _as_given(problem: Problem, shift: int) -> Flaw:
    """Return a problem with its message counted as in a row that had no system message of the recipe before it."""

    def counted(match: re.Match[str]) -> str:
        index = int(match[1]) - shift
        return f"messages[{index}]" if index >= 0 else "data.system"

    field = _INDEX.sub(counted, problem.field)
    return Flaw(
        "data.system" if field == "data.system.content" else field, problem.message, problem.kind, problem.severity
    )


def load_token_check(name: str, settings: DataSettings) -> TokenCheck:
    """Return a check by the tokenizer in a folder or on the Hub, with the template that training would take.

    Raises:
        DataError: there is no tokenizer, or no chat template that marks what is learned.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(os.path.expanduser(name), local_files_only=is_cache_all(name))
    # No such folder, no access, no network, or files that do not parse: the library's own words say which.
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"tokenizer {quoted(name)} cannot be loaded: {say_not_found(name, error)[:300]}") from error
    return TokenCheck(tokenizer, choose_template(tokenizer, settings.chat_template, settings.assistant_only), settings)
