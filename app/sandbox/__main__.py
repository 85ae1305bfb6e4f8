"""Runs the sandbox as a process of its own, with nothing else of Imagekeep loaded, so that it is there at once."""

import argparse

from app.sandbox.server import run_sandbox


def main() -> None:
    """Run on 127.0.0.1, and end with the process `--parent`."""
    parser = argparse.ArgumentParser(prog="python -m app.sandbox")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="the process to end with")
    parser.add_argument("--no-draw", action="store_true")
    arguments = parser.parse_args()
    run_sandbox(
        host="127.0.0.1",
        port=arguments.port,
        draw=not arguments.no_draw,
        die_with_parent=True,
        parent_id=arguments.parent,
    )


if __name__ == "__main__":
    main()
