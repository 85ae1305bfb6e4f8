"""Both loops: the service runs on uvloop, and `imagekeep recover` on asyncio's own."""

from tests.upstream.conftest import anyio_backend

__all__ = ["anyio_backend"]
