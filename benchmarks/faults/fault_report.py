"""The tables of a run, as markdown."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fault_cells import REPEATS, Cell
from fault_clock import Clocked
from fault_faces import FACES
from fault_server import HEALTHY
from fault_traffic import Row

_SHORT = {
    "ChatUniRouter": "chat",
    "UniRouterMiddleware": "agent",
    "UniRouterLLM": "llm",
    "UniRouterQueryEngine": "engine",
    "with_fallbacks": "with_fallbacks",
    "ModelFallbackMiddleware": "FallbackMiddleware",
    "LiteLLM Router": "LiteLLM",
}


_SUMMARY = (
    *("face", "plain", "streamed", "raised", "wrong", "hang", "answered a caller's error"),
    *("latency, median / 90%", "attempts", "asked again", "healthy"),
)
_TRAFFIC = ("face", "scenario", "calls", "answered", "wrong", "hang", "attempts per call", "of the best", "median s")
_CLOCKED = (
    *("face", "scenario", "calls a second", "answered", "possible", "by the best", "attempts per call"),
    *("in an outage", "first answer after s", "the best after s"),
)
_LEGEND = (
    "Right outcomes of all cells, and what came of the others. Latency and attempts are multiples of a healthy call's, "
    "where another model answered. Asked again: after how many faults the model is asked in ten calls of ten."
)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def summaries(cells: Sequence[Cell], in_a_row: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The figures of each face over all faults and ways."""
    return {face: _summary(face, cells, in_a_row) for face in dict.fromkeys(cell.face for cell in cells)}


def _summary(face: str, cells: Sequence[Cell], in_a_row: Sequence[Cell]) -> dict[str, Any]:
    ours = [cell for cell in cells if cell.face == face and cell.fault != HEALTHY]
    healthy: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.face == face and cell.fault == HEALTHY:
            healthy.setdefault(cell.way, []).append(cell)
    usual = {way: statistics.median(cell.seconds for cell in found) for way, found in healthy.items()}
    replaced = [cell for cell in ours if cell.verdict == "right" and cell.what.outcome == "answered"]
    repeated = [cell for cell in in_a_row if cell.face == face and "hangs" not in cell.outcomes]
    verdicts = Counter(cell.verdict for cell in ours)
    return {
        "plain": _share(cell for cell in ours if not cell.streamed),
        "streamed": _share(cell for cell in ours if cell.streamed),
        "raised": verdicts["raised"],
        "wrong": verdicts["wrong"],
        "hangs": verdicts["hangs"],
        "answered for a caller's error": verdicts["answered"],
        "latency": _quantiles([cell.seconds / usual[cell.way] for cell in replaced]),
        "attempts": _mean([cell.attempts / healthy[cell.way][0].attempts for cell in replaced]),
        "asked again": f"{sum(cell.best >= REPEATS for cell in repeated)} of {len(repeated)}" if repeated else "-",
        "healthy": _share(cell for found in healthy.values() for cell in found),
    }


def _share(cells: Iterable[Cell]) -> str:
    verdicts = [cell.verdict for cell in cells]
    return f"{verdicts.count('right')} of {len(verdicts)}"


def _quantiles(values: Sequence[float]) -> str:
    if not values:
        return "-"
    values = sorted(values)
    return f"{statistics.median(values):.1f} / {values[int(0.9 * (len(values) - 1))]:.1f}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f}" if values else "-"


def by_fault(cells: Sequence[Cell], *, streamed: bool) -> dict[str, dict[str, str]]:
    """How many ways of each face are right under each fault, and what comes of the others."""
    chosen = [cell for cell in cells if cell.streamed == streamed]
    faults = dict.fromkeys(cell.fault for cell in chosen)
    faces = dict.fromkeys(cell.face for cell in chosen)
    return {
        fault: {face: _found([cell for cell in chosen if (cell.fault, cell.face) == (fault, face)]) for face in faces}
        for fault in faults
    }


def _found(cells: Sequence[Cell]) -> str:
    verdicts = Counter(cell.verdict for cell in cells)
    others = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common() if verdict != "right")
    return f"{verdicts['right']}/{len(cells)}" + (f" ({others})" if others else "")


def asked_again(in_a_row: Sequence[Cell]) -> dict[str, list[str]]:
    """The faults after which a model is asked as if nothing had been, in ten calls of ten, by face and way."""
    found: dict[str, list[str]] = {}
    for cell in in_a_row:
        if cell.best >= REPEATS and "hangs" not in cell.outcomes:
            found.setdefault(f"{cell.face}, {cell.way}", []).append(cell.fault)
    return found


def behind(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """The faults under which a peer answers a greater share of its ways, by face and peer."""
    found: dict[str, list[str]] = {}
    for streamed in (False, True):
        shares: dict[tuple[str, str], list[bool]] = {}
        for cell in cells:
            if cell.streamed == streamed and cell.what.outcome == "answered":
                shares.setdefault((cell.face, cell.fault), []).append(cell.verdict == "right")
        for (face, fault), right in shares.items():
            for peer in {name for name, _ in shares if name not in FACES} if face in FACES else ():
                theirs = shares[peer, fault]
                if sum(theirs) / len(theirs) > sum(right) / len(right):
                    kind = "streamed" if streamed else "plain"
                    found.setdefault(f"{face}, {kind}, behind {peer}", []).append(fault)
    return found


def problems(cells: Sequence[Cell], in_a_row: Sequence[Cell]) -> list[str]:
    """The cells of the package's own faces that are not as they should be."""
    found = [
        f"{cell.face}, {cell.way}: {cell.fault}: {cell.verdict} ({cell.error})"
        for cell in cells
        if cell.face in FACES and cell.verdict != "right"
    ]
    return found + [f"{way}: {fault}: asked again" for way, faults in asked_again(in_a_row).items() for fault in faults]


def _listed(found: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"* {name}: {'; '.join(faults)}" for name, faults in found.items())


def report(cells: Sequence[Cell], in_a_row: Sequence[Cell], clocked: Sequence[Clocked], traffic: Sequence[Row]) -> str:
    """All tables."""
    parts = []
    if cells:
        parts += _matrix(cells, in_a_row)
    if traffic:
        parts += ["## Real clients, many calls", table(_TRAFFIC, map(_line_of_traffic, traffic))]
    if clocked:
        parts += ["## Random failures and outages, on a clock turned by hand", table(_CLOCKED, map(_line, clocked))]
    return "\n\n".join(parts) + "\n"


def _line_of_traffic(row: Row) -> list[Any]:
    shares = _percent(row.answered, row.wrong, row.hangs)
    return [row.face, row.scenario, row.calls, *shares, f"{row.attempts:.2f}", f"{row.best:.2f}", f"{row.seconds:.2f}"]


def _line(row: Clocked) -> list[Any]:
    outage = ["" if value is None else f"{value:.1f}" for value in (row.most_attempts, row.first_after, row.best_after)]
    shares = _percent(row.answered, row.possible, row.best)
    return [row.face, row.scenario, row.speed, *shares, f"{row.attempts:.2f}", *outage]


def _percent(*shares: float) -> list[str]:
    return [f"{share:.2%}" for share in shares]


def _matrix(cells: Sequence[Cell], in_a_row: Sequence[Cell]) -> list[str]:
    found = summaries(cells, in_a_row)
    rows = [[face, *figures.values()] for face, figures in found.items()]
    parts = ["## Every fault, every way", _LEGEND, table(_SUMMARY, rows)]
    for streamed, title in ((False, "Plain calls"), (True, "Streamed calls")):
        faults = by_fault(cells, streamed=streamed)
        faces = list(next(iter(faults.values())))
        lines = [[fault, *(row[face] for face in faces)] for fault, row in faults.items() if fault != HEALTHY]
        parts += [f"### {title}", table(["fault", *(_SHORT[face] for face in faces)], lines)]
    if again := asked_again(in_a_row):
        parts += ["### Asked in ten calls of ten", _listed(again)]
    if worse := behind(cells):
        parts += ["### Behind a peer", _listed(worse)]
    return parts
