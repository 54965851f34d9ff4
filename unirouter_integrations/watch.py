"""Keep a router up to date with the folder it was loaded from."""

from __future__ import annotations

import logging
import os
from typing import Self

from unirouter_integrations._checks import positive_or_infinite, shown_path
from unirouter_integrations._concurrency import PeriodicThread
from unirouter_integrations._router import UniRouter
from unirouter_integrations._storage import folder_version
from unirouter_integrations.embedding import LocalEmbedder

__all__ = ["Watch"]

_log = logging.getLogger("unirouter_integrations")


class Watch:
    """Reloads a router whenever a new version of it is saved in its folder.

    Calls go on meanwhile, and see either the old router or the new one. While the folder cannot be read, the old one
    stays in use. A model that is registered but not in the new folder no longer takes part.

    Args:
        router: The router in use, loaded from the folder.
        path: The folder, or its URL, see `UniRouter.load`.
        every: Seconds from one check to the next.

    Example:
        ```python
        router = UniRouter.load("s3://bucket/router")
        with Watch(router, "s3://bucket/router"):
            serve(router)
        ```
    """

    def __init__(self, router: UniRouter, path: str | os.PathLike[str], *, every: float = 60.0) -> None:
        self._router = router
        self._path = path
        self._is_unreadable = False
        self._background = PeriodicThread(
            self._try_to_check, positive_or_infinite(every, "every, a number of seconds,"), "unirouter-watch"
        )
        self._background.start()

    def check(self) -> bool:
        """Check now. Returns whether there was a new version.

        Raises:
            StorageError: If the folder cannot be read.
            EmbeddingError: If the new router was fitted with another embedder.
        """
        if folder_version(self._path, "router") == self._router.version:
            return False
        embedder = self._router.clusters.embedder
        is_saved_with_it = isinstance(embedder, LocalEmbedder)
        self._router.replace_with(UniRouter.load(self._path, embedder=None if is_saved_with_it else embedder))
        return True

    def close(self) -> None:
        """Stop watching."""
        self._background.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try_to_check(self) -> None:
        try:
            self.check()
        except Exception as error:  # noqa: BLE001  # a file system may raise anything; the router in use stays
            if not self._is_unreadable:
                self._is_unreadable = True
                _log.warning(
                    "The router in %s could not be loaded (%s); the one in use stays.",
                    shown_path(self._path),
                    type(error).__name__,
                )
        else:
            self._is_unreadable = False
