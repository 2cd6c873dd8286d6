"""Seeds that belong to a thing, not to its place in a batch."""

from __future__ import annotations


def prompt_seed(base: int, key: int, sample: int = 0) -> int:
    """Seed of one sample of one prompt or example, spread over 63 bits (SplitMix64's finaliser)."""
    x = (base * 0x9E3779B97F4A7C15 + key * 0xBF58476D1CE4E5B9 + sample + 1) % (1 << 64)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % (1 << 64)
    return int((x ^ (x >> 31)) >> 1)
