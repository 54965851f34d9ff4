"""The exceptions of this package.

```
UniRouterError
├── InvalidInputError (ValueError)        an argument is out of range, or two arguments disagree
├── EmbeddingError (ValueError)           vectors of the wrong shape, not finite, or of another embedder
├── NoModelError (LookupError)            nothing to choose from
│   └── UnknownModelError                 a name that is not registered
├── StorageError (ValueError)             a saved folder is missing, damaged, or too new
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
