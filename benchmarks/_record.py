"""Shared by the benchmarks: time calls in turn, and write figures to a file."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("unirouter-integrations", "numpy", "scikit-learn", "langchain-core", "llama-index-core")


def medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time some calls in turn, so that a slow moment of the machine affects all of them.

    Args:
        calls: The calls by name.
        rounds: How often each is made; one more call before these is not counted.

    Returns:
        The median time of each call, in microseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter_ns()
            call()
            times[name].append((time.perf_counter_ns() - began) / 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def record(figures: Mapping[str, Any], command: str | None = None) -> None:
    """Write figures to `results/<name of the script>.json`, if the command line has `--record`.

    Beside the figures there are the date, the command and the versions of packages, and nothing about the machine.

    Args:
        figures: Plain JSON. Floats are rounded to four digits.
        command: The command that was run; None for the script and its arguments.
    """
    if "--record" not in sys.argv:
        return
    script, *arguments = sys.argv
    threads = os.environ.get("OMP_NUM_THREADS")
    shown = [Path(argument).name if Path(argument).exists() else argument for argument in arguments]
    parts = [
        *([f"OMP_NUM_THREADS={threads}"] if threads else []),
        "python",
        f"benchmarks/{Path(script).name}",
        *shown,
    ]
    facts = {
        "command": command or " ".join(parts),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": python_version(), **_versions()},
        "figures": _rounded(figures),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (RESULTS / f"{Path(script).stem}.json").write_text(text, encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
