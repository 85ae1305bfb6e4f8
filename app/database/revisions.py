"""Which revision does this release need, and what if the database is at one that it doesn't know?"""

from importlib.resources import files


class OtherRelease(Exception):
    """The database is at a revision that this release doesn't know; the text is Alembic's."""


def head_revision() -> str:
    """Return the revision this release needs: the names of the migrations begin with theirs, in their order."""
    versions = files("migrations").joinpath("versions").iterdir()
    return max(file.name.partition("_")[0] for file in versions if file.name.endswith(".py"))
