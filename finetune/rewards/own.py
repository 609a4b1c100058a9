"""A user's own reward, by import path."""

import importlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

from ..errors import RecipeError, RewardError
from ..limits import ABOVE_ZERO
from ..own_code import working_folder_importable
from .completion import Row


@dataclass(frozen=True)
class Own:
    """What a function of yours returns: `package.module:function`, called with the completion, the row and `settings`.

    It is imported from the installed packages or the working folder, and returns a number, better from 0 to 1, or None
    where it has nothing to say about a row. It runs in the process of the trainer: what it imports and does is its own.
    With a `timeout_s` it runs in a thread; one that takes longer is left to itself, and the sample cannot be scored.
    """

    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: Annotated[float, ABOVE_ZERO] | None = None

    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    verifies: ClassVar[bool] = True

    def __post_init__(self):
        import_function(self.function)

    def __call__(self, completion: str, row: Row) -> float | None:
        """Return what the function does; what it raises is raised.

        Raises:
            RewardError: it took too long.
        """
        function = partial(import_function(self.function), completion, row, **self.settings)
        return function() if self.timeout_s is None else self._wait_for(function, self.timeout_s)

    def _wait_for(self, function: Callable[[], Any], timeout_s: float) -> Any:
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        # A daemon: one that never ends must not keep the trainer from ending.
        threading.Thread(target=run, daemon=True).start()
        try:
            return done.result(timeout_s)
        except TimeoutError:
            if done.done():
                raise
            raise RewardError(f"{self.function} took longer than {timeout_s:g} s") from None


def import_function(path: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` names; the working folder is searched too.

    Raises:
        RecipeError: there is no such module or function, or the import failed.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise RecipeError(f'function is "{path}"; allowed: package.module:function')
    try:
        with working_folder_importable():
            module = importlib.import_module(module_name)
    # Code of the user's: whatever it raises while it is imported, the recipe names what cannot be used.
    except Exception as error:
        raise RecipeError(
            f'function is "{path}", which cannot be imported ({type(error).__name__}: {error})'
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f'function is "{path}", but {module_name} has no function "{name}"')
    return function
