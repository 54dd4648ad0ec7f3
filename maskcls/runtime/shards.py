"""Parts of a job, each for a machine of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """One of the parts that a job is split into, each for a machine of its own."""

    number: int  # from 1
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"shard {self}: the first number is 1 to {self.count}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def bounds(self, pictures: int, batch_size: int) -> slice:
        """Which of so many pictures are its own.

        Shards hold whole batches: a picture is computed beside the same others as without shards,
        so it gets the same answer, to the last digit. They differ by a batch at most: of 10
        pictures in batches of 2, three shards have 2, 4 and 4.
        """
        batches = -(-pictures // batch_size)
        first, last = (n * batches // self.count for n in (self.number - 1, self.number))
        return slice(min(first * batch_size, pictures), min(last * batch_size, pictures))
