"""Random state: the global generator, and generators of one's own."""

from typing import Self

from fastnn._C import Tensor, get_rng_state, manual_seed, set_rng_state

__all__ = ["Generator", "get_rng_state", "manual_seed", "set_rng_state"]


class Generator:
    """A stream of random numbers apart from the global one: the same seed gives the same numbers as
    ``fastnn.manual_seed`` would.

    ``with generator:`` makes it the global stream for a while; DataLoader and random_split take it as an argument.
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Self:
        before = get_rng_state()
        manual_seed(seed)
        self._state = get_rng_state()
        set_rng_state(before)
        self._seed = seed
        return self

    def initial_seed(self) -> int:
        return self._seed

    def get_state(self) -> Tensor:
        return self._state

    def set_state(self, state: Tensor) -> Self:
        self._state = state
        return self

    def __enter__(self) -> Self:
        self._outside = get_rng_state()
        set_rng_state(self._state)
        return self

    def __exit__(self, *exception: object) -> None:
        self._state = get_rng_state()
        set_rng_state(self._outside)
