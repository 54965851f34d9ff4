"""The exceptions of this package.

```
UniRouterError
├── InvalidInputError (ValueError)        an argument is out of range, or two arguments disagree
├── EmbeddingError (ValueError)           vectors of the wrong shape, not finite, or of another embedder
├── NoModelError (LookupError)            nothing to choose from
│   └── UnknownModelError                 a name that is not registered
├── StorageError (ValueError)             a saved folder is missing, damaged, or too new
├── StreamCutError (ConnectionError)      a stream ended without the end of its answer
└── MissingDependencyError (ImportError)  an optional package is not installed
```

Each message names the thing, the values that disagree and the remedy. What a chat model or an embedding
service raises is never wrapped: it is raised unchanged.
"""

__all__ = [
    "EmbeddingError",
    "InvalidInputError",
    "MissingDependencyError",
    "NoModelError",
    "StorageError",
    "StreamCutError",
    "UniRouterError",
    "UnknownModelError",
]


class UniRouterError(Exception):
    """Base of every exception that this package itself raises."""


class InvalidInputError(UniRouterError, ValueError):
    """An argument is out of range, of the wrong type, or disagrees with another one."""


class EmbeddingError(UniRouterError, ValueError):
    """Vectors have the wrong shape, are not finite, or come from another embedder than the fitted one."""


class NoModelError(UniRouterError, LookupError):
    """There is no candidate to choose from."""


class UnknownModelError(NoModelError):
    """A model was named that is not registered."""


class StorageError(UniRouterError, ValueError):
    """A saved folder is missing, damaged, or written by a newer version."""


class MissingDependencyError(UniRouterError, ImportError):
    """An optional package is needed and not installed."""


class StreamCutError(UniRouterError, ConnectionError):
    """A stream ended without reporting the end of its answer, as its provider otherwise does.

    Attributes:
        partial_text: The text that had arrived.
    """

    partial_text: str = ""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The stream of {model!r} ended without reporting the end of the answer, so the answer may be cut. Its "
            "text is in the partial_text of this error."
        )
