"""Ids of tool calls in the form that a model takes, the same for a call and for its result."""

import hashlib
import re
from collections import deque
from collections.abc import Iterable

BRIDGE = "I have the results."  # what an assistant says between results and the user, where it has to say something

_FORM = re.compile(r"[a-zA-Z0-9_-]{1,40}")  # all of them but Mistral's take this
_FORM_OF_MISTRAL = re.compile(r"[a-zA-Z0-9]{9}")
_MISTRAL = re.compile(r"[a-z]+stral|[mp]ixtral")  # Mistral, and its models on other servers


def is_of_mistral(model: str) -> bool:
    """Whether a model is one of Mistral's, by what is known of its name and its client."""
    return bool(_MISTRAL.search(model.lower()))


class ToolIds:
    """The ids of the calls in one conversation, as one model is given them.

    Those of foreign calls that have another form than the model takes, none, or one that an earlier call has already
    are replaced. The same conversation always has the same ids, so prompt caches stay warm.

    Args:
        strict: Whether the ids have Mistral's form.
    """

    def __init__(self, *, strict: bool) -> None:
        self._form = _FORM_OF_MISTRAL if strict else _FORM
        self._taken: set[str] = set()
        self._waiting: dict[str, deque[str]] = {}  # the given ids of the last calls, by the ones they had

    def of_calls(self, ids: Iterable[str], *, foreign: bool) -> list[str]:
        """The ids of all calls of one message. The results that follow are theirs."""
        self._waiting = {}
        return [self._of_call(called, foreign=foreign) for called in ids]

    def of_result(self, called: str) -> str:
        """The id of a result; of several results of one id, the calls' in turn."""
        waiting = self._waiting.get(called)
        if not waiting:
            return called
        return waiting.popleft() if len(waiting) > 1 else waiting[0]

    def _of_call(self, called: str, *, foreign: bool) -> str:
        given, tries = called, 0
        while foreign and (given in self._taken or not self._form.fullmatch(given)):
            given = hashlib.sha256(f"{tries} {called}".encode()).hexdigest()[:9]  # nine letters or digits suit all
            tries += 1
        self._taken.add(given)
        self._waiting.setdefault(called, deque()).append(given)
        return given
