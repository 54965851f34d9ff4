"""Pages for people: the results of an evaluation, and the choices of a router in use.

A page is one HTML file that loads nothing else: its pictures are embedded. They are drawn with matplotlib's own
objects, never with pyplot, whose figures and settings belong to the caller. No page holds a prompt.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unirouter_integrations._checks import requires, shown_path
from unirouter_integrations._router import UniRouter
from unirouter_integrations._storage import replace_file
from unirouter_integrations.core import Memberships, Pool, PromptClusters, Snapshot
from unirouter_integrations.core._decision import best, decide
from unirouter_integrations.core._profiles import Floats
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.evaluation._baselines import (
    BLIND,
    BOUNDS,
    CLAIRVOYANT,
    DEFAULT,
    FIXED,
    KMEANS,
    KNN,
    LEARNED_MAP,
    METHODS,
    RIDGE,
)
from unirouter_integrations.evaluation._protocol import SIGNIFICANT, Evaluation, average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DRAWN = (DEFAULT, BLIND, KNN, KMEANS, LEARNED_MAP, RIDGE, CLAIRVOYANT)  # lines that still can be told apart
_MAX_NAMED = 8  # models with a colour of their own in the picture of choices; matplotlib's cycle has ten
_MAX_ROWS, _MAX_COLUMNS = 100, 60  # of the heat map, so that names stay readable
_KEYWORDS = 3  # of a cluster, in the heat map
_MAX_LABEL = 56  # characters
_WEIGHTS = np.geomspace(1e-6, 1e6, 121)  # cost weights, in errors per call of the most expensive model
_FINE_WEIGHTS = 200  # between the first and the last of these at which choices change
_MIN_COST = 1e-300  # so that costs can be divided by the largest one
_CHANGE = 0.01  # a share of the prompts that can be seen in a picture
_DPI = 200
# No date, so that the same figures give the same file.
_METADATA: dict[str, dict[str, str | None]] = {"svg": {"Date": None}, "png": {}}
_MISSING_GLYPH = "\N{WHITE SQUARE}"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; }
h2 { margin-top: 2em; border-bottom: 1px solid #8888; }
p { max-width: 50em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: 1em 0; }
th, td { padding: 2px 9px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.words td { white-space: normal; overflow-wrap: anywhere; }
th[colspan] { text-align: center; }
thead { border-top: 1px solid #8888; }
tbody { border-top: 1px solid #8888; border-bottom: 1px solid #8888; }
tbody th { font-weight: normal; font-style: italic; opacity: 0.75; }
.pictures { display: flex; flex-wrap: wrap; column-gap: 2em; }
.pictures figure { flex: 1 1 480px; }
figure { margin: 0 0 2em; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption { font-size: 13px; opacity: 0.85; max-width: 60em; }
summary { cursor: pointer; }
"""


def write_report(evaluations: Sequence[Evaluation], path: str | os.PathLike[str]) -> None:
    """Write the results of `evaluate` as one HTML file with tables and pictures.

    Args:
        evaluations: The results, one for each set of outcomes.
        path: The file, which is replaced if it exists. Its folder is made if it does not.

    Raises:
        InvalidInputError: If there is nothing to report.
        MissingDependencyError: If matplotlib is not installed.
    """
    found = [] if isinstance(evaluations, Evaluation) else list(evaluations)
    if not found or not all(isinstance(one, Evaluation) for one in found):
        msg = (
            "evaluations should be a list of one or more results of evaluate(), for instance "
            f"[evaluate(outcomes)], but {type(evaluations).__name__} was given."
        )
        raise InvalidInputError(msg)
    splits = " or ".join(map(str, sorted({one.n_trials for one in found})))
    lead = (
        "<p>Routers, compared on recorded outcomes: each answer was given and graded once, and is looked up here. "
        f"For each of {splits} random splits, a third of the models is hidden. These are the new models, which are "
        "graded on a few validation prompts only; methods learn from the other models and prompts. Then the test "
        "prompts are routed among the new models at every trade-off of error and cost. The area under the curve of "
        "quality against cost is the mean quality over all budgets from the cheapest to the most expensive new model, "
        "from 0 to 1.</p>"
    )
    parts = [lead]
    if len(found) > 1:
        parts.append(_averages(found))
    for number, one in enumerate(found, 1):
        parts.append(f"<h2>{html.escape(one.name or f'Outcomes {number}')}</h2>")
        parts.append(f"<p>{len(one.models)} models, {one.n_prompts:,} prompts, {one.n_trials} splits.</p>")
        parts.append(_results(one))
        parts.append(f'<div class="pictures">{_deferral_curves(one)}{_learning_curves(one)}</div>')
        parts.append(
            f"<h3>One of these routers</h3><p>The router and the test prompts of the first split, with the new models "
            f"graded on {max(one.sizes)} validation prompts.</p>"
        )
        router = one.router.snapshot()
        parts.append(_pictures(router, one.phi, np.full(len(one.phi), 1 / len(one.phi))))
        parts.append(f"<details><summary>The clusters of prompts</summary>{_clusters(router)}</details>")
    _write(path, "Routing models that were not seen before", parts)


def write_picture(evaluations: Sequence[Evaluation], path: str | os.PathLike[str]) -> None:
    """Draw the area against the number of validation prompts, one panel for each set of outcomes.

    Args:
        evaluations: The results of `evaluate`, one for each set of outcomes.
        path: A `.svg` or `.png` file, which is replaced if it exists.

    Raises:
        InvalidInputError: If there is nothing to draw, or the name of the file ends in something else.
        MissingDependencyError: If matplotlib is not installed.
    """
    check_pictures(path)
    if not evaluations:
        msg = "A picture needs at least one evaluation."
        raise InvalidInputError(msg)
    kind = Path(path).suffix.lower().removeprefix(".")
    width = 1 / len(evaluations)
    figure = _figure(3.6 * len(evaluations), 2.9)[0]
    figure.clear()
    for number, one in enumerate(evaluations):
        axes = figure.add_axes((number * width, 0, 0.78 * width, 1))
        _draw_learning_curves(one, axes)
        axes.set_title(_label(one.name), fontsize=10)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=4, frameon=False, fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=_DPI, bbox_inches="tight", facecolor="white", metadata=_METADATA[kind])
    _put(path, data.getvalue())


def check_pictures(path: str | os.PathLike[str] | None = None) -> None:
    """Raise the error that drawing would raise, before the long work that comes before it.

    Args:
        path: Where the picture is to be written; None if it is part of a page.

    Raises:
        InvalidInputError: If the name of the file does not end in .svg or .png.
        MissingDependencyError: If matplotlib is not installed.
    """
    _figure(1, 1)
    if path is not None and Path(path).suffix.lower().removeprefix(".") not in _METADATA:
        msg = f"The name of a picture should end in .svg or .png, but it is {shown_path(path)}."
        raise InvalidInputError(msg)


def report(router: UniRouter, path: str | os.PathLike[str], prompts: Sequence[str] | None = None) -> None:
    """Write what a router expects of its models, and which it would choose, as one HTML file.

    Args:
        router: The router, with at least one registered model.
        path: The file, which is replaced if it exists. Its folder is made if it does not.
        prompts: Prompts like those it routes, over which the choices are counted; None for the prompts that it was
            fitted on, which are represented by its clusters.

    Raises:
        InvalidInputError: If there are no prompts in the list.
        NoModelError: If no model is registered.
        MissingDependencyError: If matplotlib is not installed.
    """
    now = router.snapshot()
    now.check_candidates()
    clusters = now.clusters
    phi, weights = np.eye(len(clusters)), clusters.shares
    over = "the prompts it was fitted on, each represented by its cluster"
    if prompts is not None:
        phi = clusters.memberships(prompts).phi
        weights = np.full(len(phi), 1 / max(len(phi), 1))
        over = f"{len(phi):,} prompts"
    if not len(phi):
        msg = "There are no prompts to report on; give at least one, or None for those that the router was fitted on."
        raise InvalidInputError(msg)
    lead = (
        f"<p>{len(now.models)} models over {len(clusters)} clusters of prompts. A prompt goes to the model with the "
        f"least expected error + cost weight &times; cost; the cost weight is {now.cost_weight:.4g}. Errors are "
        f"estimated from graded prompts (<code>{html.escape(router.estimator)}</code>). Choices are counted over "
        f"{over}.</p>"
    )
    parts = [
        lead,
        _pictures(now, phi, weights),
        "<h2>Models</h2>",
        _models(now.pool, clusters),
        "<h2>Clusters of prompts</h2>",
        _clusters(now),
    ]
    _write(path, "A router and its models", parts)


def _averages(evaluations: Sequence[Evaluation]) -> str:
    try:
        areas = average(evaluations)
    except InvalidInputError as error:
        return f"<p>There is no average: {html.escape(str(error))}</p>"
    sizes = evaluations[0].sizes
    head = _spans({"": 1, "mean area, by validation prompts": len(sizes)}) + _row(["", *map(str, sizes)], "th")
    rows = {method: [f"{area:.4f}" for area in row] for method, row in areas.items()}
    return f"<h2>Average of {len(evaluations)} sets of outcomes</h2>{_by_method(head, rows)}"


def _results(evaluation: Evaluation) -> str:
    first, sizes = next(iter(evaluation.areas)), evaluation.sizes
    largest = sizes.index(max(sizes))
    rows = {}
    for method, areas in evaluation.areas.items():
        gains = [evaluation.compare(first, method, size) for size in sizes]
        rows[method] = [
            *(f"{area:.4f}" for area in areas.mean(axis=0)),
            *(
                "" if method == first else f"{g.difference:+.4f} {g.wins}:{g.losses}{'*' * (g.p < SIGNIFICANT)}"
                for g in gains
            ),
            *(
                f"{table[method][:, largest].mean():.3f}"
                for table in (evaluation.quality_neutral_costs, evaluation.peak_qualities)
            ),
        ]
    groups = {
        "": 1,
        "area, by validation prompts": len(sizes),
        f"{first} above it, wins:losses": len(sizes),
        f"at {max(sizes)}": 2,
    }
    head = _spans(groups) + _row(["", *map(str, sizes), *map(str, sizes), "QNC", "peak"], "th")
    return _by_method(head, rows) + (
        f"<p>* marks p &lt; {SIGNIFICANT:g} in the two-sided sign test over the splits. QNC: the least cost that "
        "reaches the quality of the best single model, as a share of that model's cost. Peak: the best quality at any "
        "cost.</p>"
    )


def _by_method(head: str, rows: Mapping[str, Sequence[str]]) -> str:
    """Return a table with a row for each method; the bounds, which read more labels, are in a part of their own."""
    fair, bounds = (
        "".join(_row([method, *cells]) for method, cells in rows.items() if (method in BOUNDS) is is_bound)
        for is_bound in (False, True)
    )
    if bounds:
        width = 1 + max(map(len, rows.values()))
        bounds = f'<tr><th colspan="{width}">may look at labels that the others do not have</th></tr>{bounds}'
    return _table(head, fair, bounds)


def _models(pool: Pool, clusters: PromptClusters) -> str:
    shares = clusters.shares
    expected = pool.expected(shares)
    rows = [
        [
            pool.names[column],
            f"{expected.error[column]:.3f}",
            f"{pool.std_of(column, shares, 1.0):.3f}",
            f"{expected.cost[column]:.4g}",
            f"{pool.profiles[pool.names[column]].counts.sum():.0f}",
        ]
        for column in np.argsort(expected.error, kind="stable").tolist()
    ]
    head = _row(["model", "expected error", "± std", "cost per call", "graded prompts"], "th")
    return _table(head, "".join(map(_row, rows)))


def _clusters(router: Snapshot) -> str:
    size = len(router.clusters)
    decisions = decide(router.pool, Memberships(np.eye(size), np.ones(size)), router.cost_weight)
    rows = [
        [
            str(each.cluster),
            f"{each.share:.1%}",
            ", ".join(each.keywords),
            decision.model,
            f"{decision.expected_error:.3f}",
        ]
        for each, decision in zip(router.clusters.describe(), decisions, strict=True)
    ]
    best_model = f"best model at cost weight {router.cost_weight:.4g}"
    head = _row(["cluster", "share", "typical words", best_model, "its expected error"], "th")
    return _table(head, "".join(map(_row, rows)), kind="words")


def _pictures(router: Snapshot, phi: Floats, weights: Floats) -> str:
    return _choices(router.pool, phi, weights, router.cost_weight) + _heat_map(router.pool, router.clusters)


def _deferral_curves(evaluation: Evaluation) -> str:
    size = sorted(evaluation.sizes)[len(evaluation.sizes) // 2]
    column = evaluation.sizes.index(size)
    first = next(iter(evaluation.curves))
    figure, axes = _figure(5.2, 3.3)
    means = []
    for method, style in _styles(evaluation).items():
        curves = evaluation.curves[method][:, column]
        # Where a split has no value there is no mean: that of the other splits would be one over other models.
        mean, error = curves.mean(axis=0), _paired_error(curves, evaluation.curves[first][:, column])
        budgets = np.linspace(0, 1, len(mean))
        axes.plot(budgets, mean, label=_label(method), **style)
        axes.fill_between(budgets, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0)
        means.append(mean)
    # The cheapest new model alone is often so bad that all else would be a line at the top.
    low, high = (float(end(np.array(means)[:, 1:])) for end in (np.nanmin, np.nanmax))
    axes.set_ylim(bottom=low - 0.1 * max(high - low, _CHANGE))
    axes.set_xlabel("budget, from the cheapest (0) to the most expensive (1) new model")
    axes.set_ylabel("mean quality")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=8)
    return _picture(
        figure,
        f"Quality against cost after {size} validation prompts. Bands are ± 1 standard error of the difference to "
        f"{first}, split by split. The cheapest end may lie below the picture.",
    )


def _learning_curves(evaluation: Evaluation) -> str:
    figure, axes = _figure(5.2, 3.3)
    _draw_learning_curves(evaluation, axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=8)
    return _picture(
        figure,
        "Area against the number of graded prompts. Bars are ± 1 standard error of the difference to "
        f"{next(iter(evaluation.areas))}, split by split.",
    )


def _draw_learning_curves(evaluation: Evaluation, axes: Axes) -> None:
    sizes = sorted(evaluation.sizes)
    columns = [evaluation.sizes.index(size) for size in sizes]
    first = next(iter(evaluation.areas))
    for number, (method, style) in enumerate(_styles(evaluation).items()):
        areas = evaluation.areas[method][:, columns]
        mean, error = areas.mean(axis=0), _paired_error(areas, evaluation.areas[first][:, columns])
        if method in FIXED:
            axes.axhline(mean[0], label=_label(method), **style)
            continue
        beside = np.multiply(sizes, 1.012**number)  # error bars at one place would hide each other
        axes.plot(beside, mean, label=_label(method), marker="o", markersize=4, **style)
        axes.errorbar(beside, mean, error, fmt="none", ecolor=style["color"], elinewidth=1, capsize=2)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sizes, labels=list(map(str, sizes)))
    axes.set_xlabel("validation prompts")
    axes.set_ylabel("area")


def _paired_error(values: Floats, against: Floats) -> Floats:
    """Return the standard error of a mean difference over splits.

    The standard error of a mean itself would mostly show that each split has other models.
    """
    gains = values - against
    return np.asarray(gains.std(axis=0, ddof=min(1, len(gains) - 1)) / np.sqrt(len(gains)))


def _styles(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Return the style of each method that is drawn: the first one, well-known ones, and the caller's own."""
    own = [method for method in evaluation.areas if method not in METHODS]
    known = [method for method in _DRAWN if method in evaluation.areas]
    drawn = list(dict.fromkeys([next(iter(evaluation.areas)), *known, *own]))[: len(_DRAWN)]
    return {
        method: {"color": "black", "linestyle": "--", "linewidth": 1.2}
        if method in BOUNDS
        else {"color": f"C{number}", "linewidth": 1.2 if number else 2.2, "zorder": 2 if number else 3}
        for number, method in enumerate(drawn)
    }


def _heat_map(pool: Pool, clusters: PromptClusters) -> str:
    rows = np.argsort(clusters.shares @ pool.error, kind="stable")[:_MAX_ROWS]
    columns = np.argsort(-clusters.shares, kind="stable")[:_MAX_COLUMNS]
    columns = columns[np.argsort(pool.error[columns].mean(axis=1), kind="stable")]
    width, height = (max(1.6, 0.16 * len(shown)) for shown in (columns, rows))
    figure, axes = _figure(width, height)
    names = [_label(pool.names[row]) for row in rows]
    keywords = [", ".join(clusters.keywords[column][:_KEYWORDS]) for column in columns]
    titles = [
        _label(f"{column}: {words}" if words else str(column)) for column, words in zip(columns, keywords, strict=True)
    ]
    image = axes.imshow(pool.error[np.ix_(columns, rows)].T, aspect="auto", cmap="YlOrRd", interpolation="nearest")
    axes.set_yticks(range(len(rows)), labels=names, fontsize=7)
    axes.set_xticks(range(len(columns)), labels=titles, fontsize=7, rotation=90)
    above = axes.inset_axes((0, 1 + 0.12 / height, min(1, 4 / width), 0.1 / height))
    figure.colorbar(image, cax=above, orientation="horizontal")
    above.xaxis.tick_top()
    above.tick_params(labelsize=7)
    above.set_title("expected error", fontsize=8, loc="left")
    caption = "Expected error of each model in each cluster (Psi): good models on top, easy clusters on the left."
    if len(rows) < len(pool.names) or len(columns) < len(clusters):
        caption += f" The best {len(rows)} of {len(pool.names)} models,"
        caption += f" and the {len(columns)} largest of {len(clusters)} clusters."
    return _picture(figure, caption)


def _choices(pool: Pool, phi: Floats, weights: Floats, cost_weight: float) -> str:
    grid, chosen = _shares_by_cost_weight(pool, phi, weights)
    often = np.argsort(-chosen.mean(axis=0), kind="stable")[:_MAX_NAMED]
    named = [column for column in often[np.argsort(pool.cost.mean(axis=0)[often])] if chosen[:, column].any()]
    figure, axes = _figure(6.4, 3.2)
    labels = [_label(pool.names[column]) for column in named]
    layers = [chosen[:, column] for column in named]
    colors = [f"C{number}" for number in range(len(named))]
    others = chosen.sum(axis=1) - np.sum(layers, axis=0)
    if (others > _CHANGE).any():
        layers, labels, colors = [*layers, others], [*labels, "others"], [*colors, "0.8"]
    axes.stackplot(grid, layers, labels=labels, colors=colors)
    axes.set_xscale("log")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0, 1)
    if grid[0] < cost_weight < grid[-1]:
        axes.axvline(cost_weight, color="black", linestyle="--", label="cost weight in use")
    axes.set_xlabel("cost weight")
    axes.set_ylabel("share of prompts")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), reverse=True, frameon=False, fontsize=8)
    return _picture(
        figure, "Which model is chosen how often: from best quality on the left to least cost on the right."
    )


def _shares_by_cost_weight(pool: Pool, phi: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Compute each model's share of the prompts over the range of cost weights in which choices change.

    Args:
        pool: The models.
        phi: `(n, K)`, the memberships of the prompts.
        weights: `(n,)`, the share for which each prompt counts.

    Returns:
        The cost weights, `(w,)`, and the shares, `(w, M)`.
    """
    error, cost = pool.expected(phi)
    unit = max(float(cost.max()) or 1.0, _MIN_COST)

    def shares(cost_weights: Floats) -> Floats:
        chosen = (best(error, cost / unit, float(weight)) for weight in cost_weights)
        return np.array([np.bincount(columns, weights, minlength=len(pool.names)) for columns in chosen])

    moved = np.flatnonzero(np.abs(np.diff(shares(_WEIGHTS), axis=0)).sum(axis=1) > _CHANGE)
    low, high = _WEIGHTS[moved[[0, -1]] + [0, 1]] if len(moved) else (0.1, 10)
    grid = np.geomspace(low / 2, high * 2, _FINE_WEIGHTS)
    return grid / unit, shares(grid)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Make axes of a size in inches. Names and legends are outside, and the picture becomes as large as they need."""
    with requires("Drawing the pictures of a report", "plots"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes((0, 0, 1, 1))


def _picture(figure: Figure, caption: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", dpi=_DPI, bbox_inches="tight", metadata=_METADATA["svg"])
    data, text = base64.b64encode(file.getvalue()).decode(), html.escape(caption)
    image = f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _label(text: str) -> str:
    """Return a name for matplotlib: on one line, not too long, and shown as it is.

    matplotlib reads formulas between dollar signs, warns of characters that its font lacks, and leaves names with a
    leading underscore out of legends.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    line = " ".join(text.split())
    short = line if len(line) <= _MAX_LABEL else f"{line[: _MAX_LABEL // 2]}…{line[-_MAX_LABEL // 2 :]}"
    font = get_font(findfont(FontProperties()))
    drawn = "".join(letter if font.get_char_index(ord(letter)) else _MISSING_GLYPH for letter in short)
    return (" " if drawn.startswith("_") else "") + drawn.replace("$", r"\$")


def _table(head: str, *bodies: str, kind: str = "numbers") -> str:
    groups = "".join(f"<tbody>{body}</tbody>" for body in bodies if body)
    return f'<div class="wide"><table class="{kind}"><thead>{head}</thead>{groups}</table></div>'


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _spans(groups: Mapping[str, int]) -> str:
    """Return a row of titles, each over a number of columns."""
    cells = (f'<th colspan="{width}">{html.escape(title)}</th>' for title, width in groups.items())
    return f"<tr>{''.join(cells)}</tr>"


def _write(path: str | os.PathLike[str], title: str, parts: Iterable[str]) -> None:
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
    )
    text = page + "\n".join(parts) + "\n</body></html>\n"
    _put(path, text.encode("utf-8", errors="xmlcharrefreplace"))


def _put(path: str | os.PathLike[str], data: bytes) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, data)
