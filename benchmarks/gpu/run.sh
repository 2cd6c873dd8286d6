#!/usr/bin/env bash
# Speed, memory and energy at the real shapes: OLMo 2 7B as teacher, 1B as student, random weights, no network. Under 9 minutes on one
# GPU of 80 GB; without a GPU the same at toy size on the CPU in under 3.
#
#   benchmarks/gpu/run.sh                       with this checkout's environment, or the python3 that is first on the PATH
#   PYTHON=... OUT=dir benchmarks/gpu/run.sh    another Python; JSON, table and logs to dir instead of benchmarks/gpu/out
#   WHEELS=dir benchmarks/gpu/run.sh            first install the wheels of dir into a temporary folder, without network
#
# A Python with torch and transformers needs trl, datasets, accelerate, codecarbon, nvidia-ml-py, pydantic, pandas and pyarrow
# besides; what it lacks of them and of their own needs can be wheels. More arguments go to python -m benchmarks.gpu.run.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
fi
out=${OUT:-benchmarks/gpu/out}
if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$PYTHON" - <<'CHECK'
import importlib.util, sys
needed = "torch transformers trl datasets accelerate safetensors pydantic pandas pyarrow pynvml".split()
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}: install them, or give their wheels with WHEELS=dir")
if importlib.util.find_spec("codecarbon") is None:
    print("codecarbon is not installed: CPU and memory have no figure", file=sys.stderr)
CHECK
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
"$PYTHON" -m benchmarks.gpu.run --out "$out" "$@"
