"""An environment in which any model earns something, and can learn to earn more: vowels are worth a third each, two turns long."""

from functools import partial

from kitchen.envs.base import Problem, Step, independent_envs
from kitchen.types import Message


class Song:
    """Two lines; each is worth its vowels."""

    def __init__(self, words):
        self.words, self.lines = words, 0

    def start(self):
        return [Message("user", self.words)]

    def step(self, action):
        self.lines += 1
        worth = sum(letter in "aeiou" for letter in action.content) / 3
        return Step(() if self.lines == 2 else (Message("user", "On!"),), worth, self.lines == 2, parts={"vowels": worth})


def songs(count, seed, split, rewards):
    """So many problems."""
    lines = [f"Sing {place}!" for place in range(count)]
    return [Problem("song", words, partial(independent_envs, partial(Song, words))) for words in lines]
