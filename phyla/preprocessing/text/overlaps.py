"""Joining token sequences that overlap: transcripts of neighbouring chunks of speech."""

from collections.abc import Sequence


def joined(
    sequences: list[list[int]], times: list[list[tuple]] | None = None
) -> tuple[list[int], list[tuple]]:
    """One sequence (and its times) of several, cut in the middle of where neighbours agree best."""
    left, left_times = sequences[0], times[0] if times else []
    tokens: list[int] = []
    token_times: list[tuple] = []
    for i, right in enumerate(sequences[1:], 1):
        right_times = times[i] if times else []
        end, start = _cut(left, right, left_times, right_times)
        tokens += left[:end]
        token_times += left_times[:end]
        left, left_times = right[start:], right_times[start:]
    return tokens + left, token_times + left_times


def _cut(left: Sequence, right: Sequence, left_times: Sequence, right_times: Sequence) -> tuple[int, int]:
    """Where to leave the left and enter the right sequence: the middle of the overlap with most agreement."""
    best, found = 0.0, (len(left), len(left), 0, 0)
    for shift in range(1, len(left) + len(right)):
        a = max(0, len(left) - shift)
        b = min(len(left), len(left) + len(right) - shift)
        c = max(0, shift - len(left))
        d = min(len(right), shift)
        pairs = range(b - a)
        if left_times:
            matches = sum(
                left[a + k] == right[c + k] and left_times[a + k] <= right_times[c + k] for k in pairs
            )
        else:
            matches = sum(left[a + k] == right[c + k] for k in pairs)
        score = matches / shift + shift / 10000.0  # longer overlaps are better where both agree as well
        if matches > 1 and score > best:
            best, found = score, (a, b, c, d)
    return (found[0] + found[1]) // 2, (found[2] + found[3]) // 2
