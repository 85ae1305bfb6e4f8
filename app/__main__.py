"""`python -m app`, and the `imagekeep` command: what has to be set before anything is imported?"""

import gc
import sys

import typer  # noqa: F401 - looks whether rich is there, to show its help with it when it is asked for.

# Imports make 270,000 objects, most of which stay. Looked through for garbage at every 700 of them, as Python has it,
# they took a seventh of a start. `app.server` sets it back for what serves.
gc.set_threshold(400_000)

# A tenth of a start went into two packages that nothing here uses. FastAPI asks of each field whether it is one of
# pydantic's old version, and imports that to ask; structlog and httpx import rich, for a console and a command of
# their own. Each takes an ImportError for an answer.
_LEFT_OUT = ("pydantic.v1", "rich")
for name in _LEFT_OUT:
    sys.modules[name] = None  # type: ignore[assignment]

from app.cli import main  # noqa: E402

# From here on typer may have it.
del sys.modules["rich"]

if __name__ == "__main__":
    main()
