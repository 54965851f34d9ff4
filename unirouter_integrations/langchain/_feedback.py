"""Feedback by run id: remembers which decisions were made in a run, for a score that comes later."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from typing_extensions import override

from unirouter_integrations._concurrency import ForkSafeLock
from unirouter_integrations._router import UniRouter
from unirouter_integrations.serving._serving import check_router

T = TypeVar("T")

_PREFIX = "unirouter_"
_REPLACED = frozenset({"failed", "refused", "rejected"})  # kinds of exclusions after which another model answered


class _Call(NamedTuple):
    """A call in progress. If it fails, a score of the run is not for its decision."""

    decision: Mapping[str, Any]
    root: UUID
    name: str


class UniRouterFeedback(BaseCallbackHandler):
    """Remembers the decisions of recent runs, and lets the router learn from the scores that people give to runs.

    Add it to the callbacks of each call, so that it sees the whole run:
    `chain.invoke(question, {"run_id": run_id, "callbacks": [feedback]})`. It holds no prompt and no answer. If you have
    the answer, `router.observe(answer.response_metadata["unirouter"], score)` does the same without it.

    Args:
        router: The router of the runs.
        max_runs: How many runs to remember; the oldest are forgotten.
    """

    run_inline = True

    def __init__(self, router: UniRouter, *, max_runs: int = 10_000) -> None:
        check_router(router)
        self._router = router
        self._max_runs = max_runs
        self._roots: OrderedDict[UUID, UUID] = OrderedDict()  # the outermost run of each chain that was started
        self._started: OrderedDict[UUID, _Call] = OrderedDict()
        self._failed: OrderedDict[UUID, dict[str, set[str]]] = (
            OrderedDict()
        )  # by decision, the names of the models that failed
        self._decisions: OrderedDict[UUID, list[Mapping[str, Any]]] = OrderedDict()
        self._lock = ForkSafeLock()

    def observe(self, run_id: UUID | str, score: float, cost: float | None = None) -> int:
        """Observe a score for each decision of a run, see `UniRouter.observe`.

        Args:
            run_id: The id of the model's run, or of the outermost run around it.
            score: It counts for each of the run's decisions.
            cost: See `UniRouter.observe`.

        Returns:
            How many decisions were counted; 0 if the run is not remembered any more, or was not routed.
        """
        decisions = self._decisions.get(run_id if isinstance(run_id, UUID) else UUID(run_id), [])
        return sum(self._router.observe(self._router.sign(decision), score, cost) for decision in decisions)

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
            replaced = noted.pop("run_id", None)  # the run whose place this one takes
            with self._lock:
                root = UUID(replaced) if replaced and parent_run_id is None else self._root(run_id, parent_run_id)
                call = _Call(noted, root, str((metadata or {}).get("ls_model_name")))
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
            # Another component, such as `ModelFallbackMiddleware`, replaced the failed model by one of its own.
            failed = self._failed.get(call.root, {}).get(_key(call.decision)) if call else None
            if call and failed and call.name not in failed:
                return
            for run in {run_id, call.root} if call else ():
                known = self._decisions.get(run, [])
                if call and not any(call.decision.get("id") == each.get("id") for each in known):  # as in a loop
                    replaced = next((each for each in reversed(known) if _replaces(call.decision, each)), None)
                    kept = [each for each in known if each is not replaced]
                    self._remember(self._decisions, run, [*kept, call.decision])

    def _root(self, run: UUID, parent: UUID | None) -> UUID:
        return run if parent is None else self._roots.get(parent, parent)

    def _remember(self, runs: OrderedDict[UUID, T], run: UUID, what: T) -> None:
        runs[run] = what
        runs.move_to_end(run)
        while len(runs) > self._max_runs:
            runs.popitem(last=False)


def _key(decision: Mapping[str, Any]) -> str:
    return json.dumps(decision, sort_keys=True, default=str)


def _replaces(decision: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the model of a decision answered in place of another one, which failed, refused or did not pass."""
    same = ("cluster", "familiarity", "cost_weight")
    replaced = {each["model"] for each in decision.get("excluded") or () if each["kind"] in _REPLACED}
    return other.get("model") in replaced and all(decision.get(key) == other.get(key) for key in same)
