"""Do the statements and a model of them in Python agree, wherever chance leads?"""

import random

import pytest

from tests.accounts.budget_walk import walk_statements

pytestmark = pytest.mark.anyio

STEPS = 1_500


async def test_statements_and_model_agree_at_every_step(database_url: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")

    walk = await walk_statements(database_url, steps=STEPS, seed=seed)

    assert {generation.state for generation in walk.model.generations.values()} >= {"completed", "lost"}
    assert walk.refused, "a walk that no limit refuses proves nothing"
    assert walk.joined, "a walk without repeats proves nothing of them"
