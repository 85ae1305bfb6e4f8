"""How does an operator have everything checked, and how is the answer told?"""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from app.console import Json, say, show, with_wiring
from app.generations.findings import Report
from app.generations.verify import Care
from app.generations.verify import verify as verify_installation
from app.wiring import Wiring


def verify(
    with_bytes: Annotated[
        bool, typer.Option("--bytes", help="Read every image, and hold it against its SHA-256.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the books, the rows and every stored image. Exit status 1 if anything is wrong; nothing is changed."""

    async def work(wiring: Wiring) -> Report:
        settings = wiring.settings
        care = Care(
            lease_seconds=max(settings.pending_lease_seconds, settings.generated_lease_seconds),
            # A bucket may be shared; the folder is ours alone.
            prefixes={name: settings.s3_prefix for name in wiring.storages if name.startswith("s3:")},
            with_bytes=with_bytes,
        )
        return await verify_installation(wiring.database, wiring.storages, care)

    report = with_wiring(work)
    if as_json:
        show(_document(report), as_json)
    else:
        _tell(report)
    if not report.holds:
        raise typer.Exit(1)


def _document(report: Report) -> dict[str, Any]:
    return {
        "holds": report.holds,
        "checked": dict(report.checked),
        "violations": dict(report.violations),
        "listed": [asdict(violation) for violation in report.listed],
        "cannot_tell": [asdict(untold) for untold in report.untold],
        "notes": [asdict(note) for note in report.notes],
    }


def _tell(report: Report) -> None:
    say("Checked: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in report.checked.items()))
    for untold in report.untold:
        say(f"Can't tell of {untold.count or 'any'} {untold.what} in {untold.storage}: {untold.why}")
    for note in report.notes:
        say(f"Note: {note.subject}: {note.detail}")
    for kind, count in report.violations.items():
        of_kind = [violation for violation in report.listed if violation.kind == kind]
        say(f"\n{kind}: {count}")
        for violation in of_kind:
            say(f"  {violation.subject}\n    {violation.detail}")
        if count > len(of_kind):
            say(f"  ... and {count - len(of_kind)} more")
    say("\nAll holds." if report.holds else f"\nNot as it should be: {sum(report.violations.values())}.")
