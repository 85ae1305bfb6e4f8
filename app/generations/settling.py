"""What is charged for the pictures that came?"""

from app.generations.records import Generation
from app.upstream.catalog import Model
from app.upstream.outcome import Usage


def used_micros(generation: Generation, model: Model, usage: Usage | None) -> int | None:
    """Return what upstream's own count comes to, at most what was held; None where it can't be told.

    Cut here, for the count is upstream's word: what was held is what the caller agreed to, and what a column can hold.
    """
    if usage is None or model.token_prices is None:
        return None
    counted = model.token_prices.cost_micros(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    return min(counted, generation.held_micros)


def settlement(generation: Generation, images: int, *, made: int | None = None) -> tuple[int, int]:
    """Return how many images and micros are settled when so many images of an order came.

    Their share of what was held, rounded up, or of what upstream says was used, if that is less. It counted all that it
    `made`, also those that could not be kept; None where nobody knows how many those were.
    """
    share_micros = _share(generation.held_micros, images, generation.held_images)
    used = generation.used_micros
    return images, share_micros if used is None else min(_share(used, images, made or images), share_micros)


def _share(micros: int, images: int, of: int) -> int:
    return -(-micros * images // of)
