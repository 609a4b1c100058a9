# The language is compiled, not run: to Python its loops are no iterables and its types no types.
from typing import Any

def __getattr__(name: str) -> Any: ...
