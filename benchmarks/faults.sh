#!/usr/bin/env bash
# Prints what comes of every fault of a provider, and writes benchmarks/results/faults.json. Run it from an environment with
# the extra `dev`. With --peers LiteLLM is installed into an environment of its own, outside the checkout, and runs as well.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="benchmarks:benchmarks/faults:tests${PYTHONPATH:+:$PYTHONPATH}"

arguments=()
for argument in "$@"; do
  [ "$argument" = --peers ] || arguments+=("$argument")
done
if [ ${#arguments[@]} -eq $# ]; then
  echo "LiteLLM is left out; --peers installs and runs it." >&2
else
  environment=${XDG_CACHE_HOME:-$HOME/.cache}/unirouter-benchmarks/litellm
  if [ ! -x "$environment/bin/litellm" ]; then
    python -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet litellm==1.110.2
  fi
  arguments+=(--peers "$environment/bin/python")
fi
case " ${arguments[*]-} " in *" --only "*) ;; *) arguments+=(--record) ;; esac
exec python -W ignore benchmarks/faults/faults.py ${arguments[@]+"${arguments[@]}"}
