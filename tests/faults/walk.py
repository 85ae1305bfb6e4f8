"""Do the statements and their model agree over a long walk, midnight, month ends and a clock that jumps included?"""

import asyncio
from collections import Counter

from app.database.embedded import open_embedded
from app.database.schema import migrate
from tests.accounts.budget_walk import walk_statements
from tests.faults.frame import Figures, Piece


def walk(piece: Piece) -> Figures:
    """Walk `times` steps on a database of its own."""
    with open_embedded(piece.folder / "postgres", role="serve", durable=False) as postgres:
        migrate(postgres.url)
        try:
            walked = asyncio.run(walk_statements(postgres.url, steps=piece.times, seed=piece.seed))
        except AssertionError as disagreement:
            return Figures({}, broken=(f"seed {piece.seed}: the statements and the model disagree: {disagreement}",))
    ended: Counter[str] = Counter(generation.state for generation in walked.model.generations.values())
    return Figures(
        {
            "steps": piece.times,
            "orders": len(walked.model.generations),
            "refusals": walked.refused,
            "midnights": walked.midnights,
            "month ends": walked.month_ends,
            "steps of the clock backwards": walked.steps_back,
            **ended,
        }
    )
