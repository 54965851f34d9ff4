"""A router that keeps up with the folder it was loaded from."""

from __future__ import annotations

import logging
import os
from typing import Self

from unirouter_integrations.embedding import LocalEmbedder
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.repeating import Repeating
from unirouter_integrations.router import UniRouter
from unirouter_integrations.storage import folder_version, shown

_log = logging.getLogger("unirouter_integrations")


class Watch:
    """Looks into a folder again and again, and swaps a new router that was saved there in for the one in use.

    Calls go on meanwhile, and see either the old router or the new one. While the folder cannot be read, the old one
    stays in use. A model that is registered but not in the new folder takes part no longer.

    Args:
        router: The router in use, loaded from the folder.
        path: The folder, or the URL of one, see `UniRouter.load`.
        every: How many seconds from one look to the next.

    Example:
        ```python
        router = UniRouter.load("s3://bucket/router")
        with Watch(router, "s3://bucket/router"):
            serve(router)
        ```
    """

    def __init__(self, router: UniRouter, path: str | os.PathLike[str], *, every: float = 60.0) -> None:
        if isinstance(every, bool) or not (isinstance(every, int | float) and every > 0):
            msg = f"every should be a number of seconds above 0, but is {every!r}."
            raise InvalidInputError(msg)
        self._router = router
        self._path = path
        self._unreadable = False
        self._background = Repeating(self._try_to_look, every, "unirouter-watch")
        self._background.start()

    def look(self) -> bool:
        """Look now. Returns whether there was a new router.

        Raises:
            StorageError: If the folder cannot be read.
            EmbeddingError: If the new router was fitted with another embedder.
        """
        if folder_version(self._path, "router") == self._router.version:
            return False
        embedder = self._router.clusters.embedder
        saved_with_it = isinstance(embedder, LocalEmbedder)
        self._router.swap_in(UniRouter.load(self._path, embedder=None if saved_with_it else embedder))
        return True

    def close(self) -> None:
        """Look no longer."""
        self._background.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try_to_look(self) -> None:
        try:
            self.look()
        except Exception as error:  # noqa: BLE001  # a file system may raise anything; the router in use stays
            if not self._unreadable:
                self._unreadable = True
                _log.warning(
                    "The router in %r could not be loaded (%s); the one in use stays.",
                    shown(self._path),
                    type(error).__name__,
                )
        else:
            self._unreadable = False
