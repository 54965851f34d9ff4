"""Feedback by run id: which decisions were made in a run, so that a score that comes later can be learnt from."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from typing_extensions import override

from unirouter_integrations.checks import check_router
from unirouter_integrations.escalation import REFUSED, REJECTED
from unirouter_integrations.fallback import FAILED
from unirouter_integrations.router import UniRouter

T = TypeVar("T")

_PREFIX = "unirouter_"


class _Call(NamedTuple):
    """The call of a model that is under way; if it fails, its decision is not the one that a score is for."""

    decision: Mapping[str, Any]
    root: UUID
    name: str


class UniRouterFeedback(BaseCallbackHandler):
    """Remembers the decisions of the last runs, and has the router learn from the scores that people give to runs.

    Put it among the callbacks of the runs, at the call, so that it sees the whole of them:
    `chain.invoke(question, {"run_id": run_id, "callbacks": [feedback]})`. It holds no prompt and no answer. Where the
    answer itself is at hand, `router.observe(answer.response_metadata["unirouter"], score)` does without it.

    Args:
        router: The router of the runs.
        most: How many runs to remember; the oldest give way.
    """

    run_inline = True

    def __init__(self, router: UniRouter, *, most: int = 10_000) -> None:
        check_router(router)
        self._router = router
        self._most = most
        self._roots: OrderedDict[UUID, UUID] = OrderedDict()  # the outermost run around each chain that was started
        self._started: OrderedDict[UUID, _Call] = OrderedDict()
        self._failed: OrderedDict[UUID, dict[str, set[str]]] = OrderedDict()  # by decision, the models that failed
        self._decisions: OrderedDict[UUID, list[Mapping[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def observe(self, run_id: UUID | str, score: float, cost: float | None = None) -> int:
        """`UniRouter.observe` for each decision of a run: that of a model, or the outermost run around it.

        Args:
            run_id: The id of the run.
            score: See `UniRouter.observe`; it is taken for that of each of the run's decisions.
            cost: See `UniRouter.observe`.

        Returns:
            How many decisions were counted; 0 if the run is not remembered any more, or was not routed.
        """
        decisions = self._decisions.get(UUID(str(run_id)), [])
        return sum(self._router.observe(decision, score, cost) for decision in decisions)

    @override
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        with self._lock:
            self._remember(self._roots, run_id, self._root(run_id, parent_run_id))

    @override
    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[Any]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        noted = {key.removeprefix(_PREFIX): value for key, value in (metadata or {}).items() if key.startswith(_PREFIX)}
        if "cluster" in noted:
            with self._lock:
                call = _Call(noted, self._root(run_id, parent_run_id), str((metadata or {}).get("ls_model_name")))
                self._remember(self._started, run_id, call)

    @override
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        with self._lock:
            if (call := self._started.pop(run_id, None)) is not None:
                failed = self._failed.get(call.root, {})
                failed.setdefault(_key(call.decision), set()).add(call.name)
                self._remember(self._failed, call.root, failed)

    @override
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        with self._lock:
            call = self._started.pop(run_id, None)
            # A call that somebody who knows no router makes for a failed one, such as `ModelFallbackMiddleware`.
            failed = self._failed.get(call.root, {}).get(_key(call.decision)) if call else None
            if call and failed and call.name not in failed:
                return
            for run in {run_id, call.root} if call else ():
                known = self._decisions.get(run, [])
                if call and call.decision not in known:  # the calls of one loop of tools share a decision
                    kept = [each for each in known if not _replaces(call.decision, each)]
                    self._remember(self._decisions, run, [*kept, call.decision])

    def _root(self, run: UUID, parent: UUID | None) -> UUID:
        return run if parent is None else self._roots.get(parent, parent)

    def _remember(self, runs: OrderedDict[UUID, T], run: UUID, what: T) -> None:
        runs[run] = what
        runs.move_to_end(run)
        while len(runs) > self._most:
            runs.popitem(last=False)


def _key(decision: Mapping[str, Any]) -> str:
    return json.dumps(decision, sort_keys=True, default=str)


def _replaces(decision: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the model of a decision answered in place of another one, which failed, refused or did not pass."""
    same = ("cluster", "familiarity", "cost_weight")
    reason = str((decision.get("excluded") or {}).get(other.get("model")))
    return reason.startswith((REFUSED, REJECTED, FAILED)) and all(decision.get(key) == other.get(key) for key in same)
