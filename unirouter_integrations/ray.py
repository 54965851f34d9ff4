"""Route and profile data sets of any size on Ray Data, as streams, on one machine or on a cluster.

Needs the extra `ray`. Reading and writing, progress bars, back-pressure, repeating blocks when a machine is lost, and
resuming a job after the blocks it has written (`DataContext.checkpoint_config`) are left to Ray Data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import shown
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import LLMProfile
from unirouter_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = ["profile_dataset", "route_dataset"]

_BATCH_ROWS = 1024  # prompts that are embedded and decided at once

_Batch = dict[str, npt.NDArray[Any]]


def route_dataset(
    ds: Dataset,
    router: UniRouter,
    column: str = "prompt",
    *,
    cost_weight: float | None = None,
    among: Iterable[str] | None = None,
    **options: Any,
) -> Dataset:
    """Decide for each row of a Ray data set which model its prompt goes to. Lazy, as Ray Data is. No model is called.

    Args:
        ds: The data set.
        router: The fitted router, as it is now.
        column: The column of the prompts.
        cost_weight: See `UniRouter.route`.
        among: See `UniRouter.route`.
        options: Other arguments of `Dataset.map_batches`. By default the router is sent along with each block. Keep an
            embedder that is large or needs a GPU in workers: `compute=ActorPoolStrategy(size=4), num_gpus=1`.

    Returns:
        The data set with the decisions in columns named as in traces: `unirouter_model`, `unirouter_cluster`,
        `unirouter_expected_error`, `unirouter_expected_cost` and so on.

    Raises:
        InvalidInputError: If there is no such column.

    Example:
        ```python
        route_dataset(ray.data.read_parquet("s3://bucket/prompts"), router).write_parquet("s3://bucket/routed")
        ```
    """
    names = None if among is None else list(among)
    return _map_batches(ds, [column], _Route, (router, column, cost_weight, names), options)


def profile_dataset(
    ds: Dataset,
    router: UniRouter,
    name: str,
    column: str = "prompt",
    *,
    score: str = "score",
    cost: float | str,
    **options: Any,
) -> LLMProfile:
    """Describe a model by graded prompts in a Ray data set, as `UniRouter.profile` does for lists.

    Args:
        ds: The data set.
        router: The fitted router.
        name: The name of the model.
        column: The column of the prompts.
        score: The column of the scores, 0 (wrong) to 1 (right); NaN where the model was not graded.
        cost: The cost of a call, or the column of the cost of each call.
        options: See `route_dataset`.

    Raises:
        InvalidInputError: If there is no such column, or no row is graded.
    """
    columns = [column, score, *([cost] if isinstance(cost, str) else [])]
    counted = _map_batches(ds, columns, _Count, (router, name, column, score, cost), options)
    parts = (
        LLMProfile(name, row["counts"], row["losses"], row["cost"], clusters=router.clusters.fingerprint)
        for row in counted.iter_rows()
    )
    first = next(parts, None)
    if first is None:
        msg = (
            f"None of the rows has a score of {name!r} in the column {shown(score)}; at least one graded prompt is "
            "needed."
        )
        raise InvalidInputError(msg)
    profile = reduce(add, parts, first)
    return profile if isinstance(cost, str) else replace(profile, cost=cost)


class _Route:
    def __init__(self, router: UniRouter, column: str, cost_weight: float | None, among: list[str] | None) -> None:
        self._router, self._column, self._cost_weight, self._among = router, column, cost_weight, among

    def __call__(self, batch: _Batch) -> _Batch:
        prompts = batch[self._column].tolist()
        decisions = self._router.route_many(prompts, cost_weight=self._cost_weight, among=self._among)
        rows = [decision.as_dict() for decision in decisions]
        return {**batch, **{f"unirouter_{what}": np.array([row[what] for row in rows]) for what in rows[0]}}


class _Count:
    """Turns a batch into the statistics of its profile, one row: profiles add, so the batches make up the whole."""

    def __init__(self, router: UniRouter, name: str, column: str, score: str, cost: float | str) -> None:
        self._router, self._name, self._column, self._score, self._cost = router, name, column, score, cost

    def __call__(self, batch: _Batch) -> _Batch:
        graded = ~np.isnan(batch[self._score])
        size = len(self._router.clusters)
        if not graded.any():
            return {what: np.zeros((0, size)) for what in ("counts", "losses", "cost")}
        part = self._router.profile(
            self._name,
            batch[self._column][graded].tolist(),
            batch[self._score][graded],
            cost=batch[self._cost][graded] if isinstance(self._cost, str) else self._cost,
        )
        cost = np.broadcast_to(part.cost, size)
        return {"counts": part.counts[None], "losses": part.losses[None], "cost": cost[None]}


def _map_batches(
    ds: Dataset, columns: list[str], work: type, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Dataset:
    known = ds.columns() or []
    if missing := [column for column in columns if column not in known]:
        msg = f"There is no column {shown(missing[0])} in the data set; its columns are {', '.join(map(repr, known))}."
        raise InvalidInputError(msg)
    settings = {"batch_size": _BATCH_ROWS, "batch_format": "numpy", **options}
    if "compute" in options:
        return ds.map_batches(work, fn_constructor_args=arguments, **settings)
    return ds.map_batches(work(*arguments), **settings)
