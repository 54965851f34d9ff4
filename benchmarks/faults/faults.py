"""Every fault of a provider, in every way to call every face, with real clients and default settings; and its peers.

    bash benchmarks/faults.sh [--peers] [--only matrix|traffic|clock]

A server on loopback speaks the OpenAI protocol. The best of three models has a fault, the others are healthy, so every
call can be answered, unless it is the caller's own error. The clients try once, for trying again is the router's part. A
good answer takes 50 ms. With --peers LiteLLM's Router, installed into an environment of its own, has the same faults;
LangChain's `with_fallbacks` and `ModelFallbackMiddleware` always have.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _record import record
from fault_cells import LATENCY, REPEATS, Cell, all_cells, cells_in_a_row, run
from fault_clock import Clocked, clocked
from fault_faces import FACES, PEERS, peer, routed
from fault_report import asked_again, by_fault, report, summaries
from fault_server import fault_server
from fault_traffic import Row, traffic

_FOLDER = Path(__file__).parent


def main() -> None:
    """Print the tables, and write the figures if `--record` is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of an environment with LiteLLM")
    parser.add_argument("--only", choices=["matrix", "traffic", "clock"], help="one part alone")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/faults.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    parts = [options.only] if options.only else ["matrix", "traffic", "clock"]
    cells: list[Cell] = []
    in_a_row: list[Cell] = []
    rows: list[Row] = []
    with fault_server(LATENCY) as server:
        if "matrix" in parts:
            cells += run(all_cells(FACES), FACES, server, routed)
            cells += run(all_cells(PEERS), PEERS, server, peer)
            in_a_row += run(cells_in_a_row(FACES), FACES, server, routed, REPEATS)
        if "traffic" in parts:
            rows += [*traffic(FACES, server, routed), *traffic(PEERS, server, peer)]
    turned: list[Clocked] = clocked() if "clock" in parts else []
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
        "traffic": [asdict(row) for row in rows],
        "clock": [asdict(row) for row in turned],
    }
    record(figures, "bash benchmarks/faults.sh" + (" --peers" if options.peers else ""))
    sys.stdout.flush()
    os._exit(0)  # calls that hang have left threads behind


def _litellm(python: str) -> dict[str, Any]:
    """What LiteLLM's Router does; it runs apart, for its requirements are not those of this environment."""
    done = subprocess.run([python, _FOLDER / "fault_litellm.py"], stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
