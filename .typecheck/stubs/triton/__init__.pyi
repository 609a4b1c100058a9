# The library types a kernel by its Python function, whose constants then take no numbers; a kernel is Any here.
from typing import Any

def __getattr__(name: str) -> Any: ...
