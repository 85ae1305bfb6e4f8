"""Which commands does `imagekeep` have, and would a command line be taken?"""

from collections.abc import Iterator, Sequence
from typing import Any

import typer

from app.cli import cli


def all_verbs() -> dict[tuple[str, ...], Any]:
    """Every command by the words that call it, such as ("users", "add")."""
    return dict(_walk(typer.main.get_command(cli), ()))


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    else:
        for name, one in inner.items():
            yield from _walk(one, (*path, name))


def verb_of(words: Sequence[str]) -> tuple[str, ...]:
    """The command that a line begins with. Fails when there is none."""
    verb = next((verb for verb in all_verbs() if tuple(words[: len(verb)]) == verb), None)
    assert verb is not None, f"there is no command: imagekeep {' '.join(words)}"
    return verb


def options_of(verb: tuple[str, ...]) -> set[str]:
    """The options that a command takes."""
    return {
        option
        for one in all_verbs()[verb].params
        for option in (*one.opts, *one.secondary_opts)
        if option.startswith("--")
    }


def take(words: Sequence[str]) -> None:
    """Read a command line as a shell's would be, running nothing. Raises for what is missing, unknown or malformed."""
    verb = verb_of(words)
    all_verbs()[verb].make_context("imagekeep", list(words[len(verb) :]))
