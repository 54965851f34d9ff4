"""Every fault of a provider, in every way to call every face, with real clients and default settings; and its peers.

    bash benchmarks/faults.sh [--peers] [--only matrix|traffic|clock] [--check]

A server on loopback speaks the OpenAI protocol. The best of three models has a fault, the others are healthy, so
every call can be answered, unless it is the caller's own error. The clients try once: trying again is up to the router.
A good answer takes 50 ms. Timeouts are short, everything else is as it is by default. LangChain's `with_fallbacks` and
`ModelFallbackMiddleware` have the same faults; with --peers LiteLLM's Router, in an environment of its own, as well.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _record import record
from fault_cells import FIRST_TOKEN_TIMEOUT, LATENCY, REPEATS, TIMEOUT, Cell, all_cells, cells_in_a_row, run
from fault_clock import Clocked, clocked
from fault_faces import FACES, PEERS, Settings, client
from fault_report import asked_again, behind, by_fault, problems, report, summaries
from fault_server import Way, fault_server
from fault_traffic import Row, traffic

from unirouter_integrations.serving import ModelRegistry

_FOLDER = Path(__file__).parent
_TIMEOUTS = {"timeout": TIMEOUT, "first_token_timeout": FIRST_TOKEN_TIMEOUT}
_making = threading.Lock()


def main() -> None:
    """Print the tables, and write the figures if `--record` is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of an environment with LiteLLM")
    parser.add_argument("--only", choices=["matrix", "traffic", "clock"], help="one part alone")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/faults.json")
    parser.add_argument("--check", action="store_true", help="fail if a cell of the matrix is not as it should be")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    parts = [options.only] if options.only else ["matrix", "traffic", "clock"]
    cells: list[Cell] = []
    in_a_row: list[Cell] = []
    rows: list[Row] = []
    turning = ProcessPoolExecutor(1, get_context("spawn")).submit(clocked) if "clock" in parts else None
    with fault_server(LATENCY) as server:
        if "matrix" in parts:
            cells += run(all_cells(FACES), FACES, server, _routed)
            cells += run(all_cells(PEERS), PEERS, server, _peer)
            in_a_row += run(cells_in_a_row(FACES), FACES, server, _routed, REPEATS)
        if "traffic" in parts:
            rows += [*traffic(FACES, server, _routed), *traffic(PEERS, server, _peer)]
    turned: list[Clocked] = turning.result() if turning else []
    if options.peers:
        theirs = _litellm(options.peers)
        cells += [Cell(**cell) for cell in theirs["cells"]] if "matrix" in parts else []
        rows += [Row(**row) for row in theirs["traffic"]] if "traffic" in parts else []
    print(report(cells, in_a_row, turned, rows))
    figures = {
        "summary": summaries(cells, in_a_row),
        "plain": by_fault(cells, streamed=False),
        "streamed": by_fault(cells, streamed=True),
        "asked again": asked_again(in_a_row),
        "behind a peer": behind(cells),
        "traffic": [asdict(row) for row in rows],
        "clock": [asdict(row) for row in turned],
    }
    record(figures, "bash benchmarks/faults.sh" + (" --peers" if options.peers else ""))
    wrong = problems(cells, in_a_row) if options.check else []
    print("\n".join(wrong))
    sys.stdout.flush()
    os._exit(bool(wrong))  # calls that hang have left threads behind


def _routed(way: Way, urls: Mapping[str, str], settings: Settings) -> Any:
    """A face of the package over real clients as they are by default, with the timeouts that would be its own."""
    with _making:
        models = {name: client(way.framework, name, url) for name, url in urls.items()}
    return way.make(ModelRegistry(models), {**_TIMEOUTS, **settings})


def _peer(way: Way, urls: Mapping[str, str], settings: Settings) -> Any:
    """A peer. It has no timeouts, so its clients have."""
    timeout, others = settings.get("timeout", TIMEOUT), {k: v for k, v in settings.items() if k != "timeout"}
    with _making:
        models = {name: client(way.framework, name, url, timeout=timeout) for name, url in urls.items()}
    return way.make(models, others)


def _litellm(python: str) -> dict[str, Any]:
    """What LiteLLM's Router does; it runs apart, for its requirements are not those of this environment."""
    done = subprocess.run([python, _FOLDER / "fault_litellm.py"], stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
