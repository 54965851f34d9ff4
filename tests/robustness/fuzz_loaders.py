"""Fuzz the loaders, guided by coverage: `python fuzz_loaders.py NAME [SECONDS]`, needs `pip install atheris`.

NAME is one of `READERS` in `test_loaders.py`, or "profiles.db". The corpus starts with a whole file of that kind, and
is kept in `CORPUS/NAME` where the environment names a folder CORPUS. It stops at the first error that is not ours.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris  # needed for fuzzing only, so no extra brings it

with atheris.instrument_imports(include=["unirouter_integrations", "safetensors", "json", "csv", "ast"]):
    from test_journals import read_journal, seed_journal
    from test_loaders import READERS, seed_files


def main() -> None:
    name, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60
    corpus = Path(os.environ.get("CORPUS") or tempfile.mkdtemp()) / name
    corpus.mkdir(parents=True, exist_ok=True)
    seed, read = (seed_journal(), read_journal) if name == "profiles.db" else (seed_files()[name], READERS[name])
    (corpus / "whole").write_bytes(seed)
    (corpus / "half").write_bytes(seed[: len(seed) // 2])
    read(seed)
    warnings.simplefilter("error")
    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=20", f"-max_len={4 * len(seed)}"]
    options = [*limits, f"-artifact_prefix={corpus.parent}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
