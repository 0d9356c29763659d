"""The model worker: an OpenAI-compatible HTTP server over the engine's sampler, for the gateway and by itself.

models = open_models({"sft": ref, "policy": ref})   # models  what is served; bases are loaded once
worker = Worker(models, slots=16, waiting=64)       # worker  continuous batching in the one thread that owns them
app = create_app(worker)                            # app     routes;  wire  what OpenAI's clients send and read
serve(refs, ...)                                    # server  the process: a socket, signals, an end
                                                    # text    tokens into text as they come, stop strings
"""

from __future__ import annotations

from importlib.util import find_spec

from trimtab.errors import ConfigError

EXTRA = ("fastapi", "uvicorn")

if _missing := [name for name in EXTRA if find_spec(name) is None]:
    raise ConfigError(f"serving models needs {', '.join(_missing)}: pip install 'trimtab[feedback]'")
