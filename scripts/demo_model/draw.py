"""A seeded source of random arguments that keeps training and held-out arguments apart.

Arguments are held out by a hash of (skill, argument),
so the split needs no list and depends on nothing else. A `Draw` for
training never yields a held-out argument, a `Draw` for evaluation yields only those.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TypeVar

from . import words

T = TypeVar("T")

HELD_OUT_SALT = "penstock-demo"
HELD_OUT_ONE_IN = 16
MAX_TRIES = 20_000

PREFIXES = (
    "Hi! ",
    "Hey, ",
    "Hello, ",
    "Ok, ",
    "Now ",
    "Question: ",
    "Next: ",
    "And ",
    "Please: ",
    "So, ",
    "Hi there. ",
    "Great. ",
)
SUFFIXES = (" please", " Please.", " Thanks.", " thank you", " Thank you!", ", please")
ONSETS = (
    "b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pl", "qu",
    "r", "s",
    "sh", "st", "t", "tr", "v", "w", "y", "z", "",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ou", "ee", "io")
CODAS = ("", "", "", "n", "r", "l", "s", "t", "m", "nd", "x", "ck", "rn", "th", "p", "d", "k", "ng")


def is_held_out(skill: str, argument: object) -> bool:
    """Whether this argument of this skill is kept from training."""
    digest = blake2b(f"{HELD_OUT_SALT}|{skill}|{argument}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


class Draw:
    """Random choices for one conversation; `held_out` says from which side of the split arguments come."""

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out

    def fresh(self, skill: str, make: Callable[[], T]) -> T:
        """The first value out of `make` that lies on this draw's side of the split."""
        for _ in range(MAX_TRIES):
            value = make()
            if is_held_out(skill, value) == self.held_out:
                return value
        raise RuntimeError(f"no argument of {skill!r} lies on the wanted side of the split")

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.rng.random() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order."""
        return self.rng.sample(options, count)

    def phrase(self, templates: Sequence[str], **values: object) -> str:
        """One of the templates, filled in, with casing, punctuation and politeness varied around the values."""
        text = self.pick(templates)
        if self.chance(0.15):
            text = self.pick(PREFIXES) + text
        if self.chance(0.25):
            text = text.rstrip("?.")
        if self.chance(0.08):
            text += self.pick(SUFFIXES)
        style = self.rng.random()
        if style < 0.25:
            text = text.lower()
        elif style < 0.5:
            text = text[:1].upper() + text[1:]
        return text.format(**values)

    def pseudo_word(self, most_syllables: int = 3) -> str:
        """A word that no list holds: syllables, or the start of one word and the end of another."""
        if self.chance(0.5):
            first, second = self.pick(words.PARTS), self.pick(words.PARTS)
            start = first if self.chance(0.4) else first[: self.integer(2, 5)]
            word = start + (second if self.chance(0.2) else second[-self.integer(1, 4) :])
        else:
            count = self.integer(1, most_syllables)
            word = "".join(self.pick(ONSETS) + self.pick(VOWELS) + self.pick(CODAS) for _ in range(count))
        return word if 3 <= len(word) <= 12 else self.pseudo_word(most_syllables)

    def name(self) -> str:
        """A first name, often an invented one."""
        return self.fresh("name", lambda: self.pick(words.NAMES) if self.chance(0.6) else self.pseudo_word(2).capitalize())

    def names(self, count: int) -> list[str]:
        """Different names."""
        return self.distinct(self.name, count)

    def city(self) -> str:
        """A city, at times an invented one."""
        return self.fresh("city", lambda: self.pick(words.CITIES) if self.chance(0.7) else self.pseudo_word(3).capitalize())

    def word(self) -> str:
        """A common word or an invented one."""
        return self.fresh(
            "word",
            lambda: self.pick(words.WORDS if self.chance(0.8) else words.PARTS) if self.chance(0.6) else self.pseudo_word(3),
        )

    def parameter(self) -> str:
        """A name for a parameter or a key."""
        return self.pick(words.PARAMS) if self.chance(0.7) else self.word()

    def distinct(self, make: Callable[[], T], count: int) -> list[T]:
        """`count` different values out of `make`."""
        found: dict[T, None] = {}
        while len(found) < count:
            found.setdefault(make())
        return list(found)
