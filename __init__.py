"""DeepSeek-V3-architecture models for transformers: generate, train and save in the published format.

Importing registers the classes with transformers' Auto classes; `seeklet.unregister()` undoes it.
"""

from seeklet.modeling import kernelize, register, unkernelize, unregister

__all__ = ["__version__", "kernelize", "register", "unkernelize", "unregister"]
__version__ = "0.1.0"
