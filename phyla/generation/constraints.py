"""What a constrained beam search must bring into its output, with the public names."""

import copy
from typing import Any

from phyla.errors import GenerationError


class Constraint:
    """Something that the generated tokens must contain, fulfilled token by token.

    `seqlen` is the most tokens it may take. Subclasses define the methods below; `update` and `copy` may rely
    on `advance` and `does_advance`.
    """

    seqlen: int
    completed: bool = False

    def advance(self) -> int | list[int] | None:
        """The token, or tokens of which one, that come next; None when fulfilled."""
        raise NotImplementedError(f"{type(self).__name__} must define advance()")

    def does_advance(self, token_id: int) -> bool:
        """Whether this token is a step forward."""
        raise NotImplementedError(f"{type(self).__name__} must define does_advance(token_id)")

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take a token: (stepped, completed, reset)."""
        raise NotImplementedError(f"{type(self).__name__} must define update(token_id)")

    def reset(self) -> None:
        """Begin again."""
        raise NotImplementedError(f"{type(self).__name__} must define reset()")

    def remaining(self) -> int:
        """How many tokens are missing at most."""
        raise NotImplementedError(f"{type(self).__name__} must define remaining()")

    def copy(self, stateful: bool = False) -> "Constraint":
        """An independent copy, with the progress if `stateful`."""
        raise NotImplementedError(f"{type(self).__name__} must define copy(stateful=False)")

    def test(self) -> None:
        """Raise GenerationError unless following `advance` leads to the end."""
        self.reset()
        for _ in range(10_000):
            token = self.advance()
            token = token[0] if isinstance(token, list) else token
            if token is None or not self.does_advance(token):
                break
            before = self.remaining()
            _, completed, _ = self.update(token)
            if before - self.remaining() != 1 and not completed:
                break
            if completed:
                if self.remaining() == 0:
                    return
                break
        raise GenerationError(f"{type(self).__name__} is not fulfilled by the tokens that it asks for")


class DisjunctiveConstraint(Constraint):
    """One of several words, each a list of ids, occurs in the output; no word may begin another."""

    def __init__(self, nested_token_ids: list[list[int]]):
        _check_words(nested_token_ids)
        words = [tuple(word) for word in nested_token_ids]
        for word in words:
            if sum(other[: len(word)] == word for other in words) > 1:
                raise GenerationError(
                    f"no word of a disjunctive constraint may begin another, but {list(word)} does"
                )
        self.token_ids = nested_token_ids
        self.words = words
        self.seqlen = max(map(len, words))
        self.current_seq: list[int] = []
        self.completed = False

    def advance(self) -> list[int] | None:
        """The ids that may come next, in the order of the words."""
        done = len(self.current_seq)
        begun = tuple(self.current_seq)
        ids = dict.fromkeys(w[done] for w in self.words if len(w) > done and w[:done] == begun)
        return list(ids) or None

    def does_advance(self, token_id: int) -> bool:
        return token_id in (self.advance() or ())

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        stepped = self.does_advance(token_id)
        if stepped:
            self.current_seq.append(token_id)
        else:
            self.reset()
        self.completed = tuple(self.current_seq) in self.words
        return stepped, self.completed, not stepped

    def reset(self) -> None:
        self.current_seq, self.completed = [], False

    def remaining(self) -> int:
        return 0 if self.completed else self.seqlen - len(self.current_seq)

    def copy(self, stateful: bool = False) -> "DisjunctiveConstraint":
        new = copy.copy(self)
        new.current_seq, new.completed = [], False
        if stateful:
            new.current_seq, new.completed = list(self.current_seq), self.completed
        return new


class PhrasalConstraint(DisjunctiveConstraint):
    """The ids of a phrase occur in the output, one behind the other."""

    def __init__(self, token_ids: list[int]):
        _check_words([token_ids])
        super().__init__([token_ids])
        self.token_ids: Any = token_ids

    def advance(self) -> int | None:  # type: ignore[override]
        """The id that comes next."""
        done = len(self.current_seq)
        return self.words[0][done] if done < self.seqlen else None

    def does_advance(self, token_id: int) -> bool:
        return not self.completed and token_id == self.advance()


class ConstraintListState:
    """How far a text has come with a list of constraints, one of them in progress at a time."""

    def __init__(self, constraints: list[Constraint]):
        self.constraints = constraints
        self.max_seqlen = max(c.seqlen for c in constraints)
        self.n_constraints = len(constraints)
        self.init_state()

    def init_state(self) -> None:
        """Begin again."""
        self.complete_constraints: list[Constraint] = []
        self.inprogress_constraint: Constraint | None = None
        self.pending_constraints = [c.copy(stateful=False) for c in self.constraints]

    @property
    def completed(self) -> bool:
        """Whether all are fulfilled."""
        return not self.pending_constraints and self.inprogress_constraint is None

    def get_bank(self) -> int:
        """Tokens of constraints that are there: what candidates are sorted by."""
        begun = self.inprogress_constraint
        step = self.max_seqlen - begun.remaining() if begun is not None else 0
        return len(self.complete_constraints) * self.max_seqlen + step

    def advance(self) -> list[int] | None:
        """The tokens that would be a step forward."""
        begun = self.inprogress_constraint
        tokens: list[int] = []
        for constraint in self.pending_constraints if begun is None else [begun]:
            step = constraint.advance()
            tokens += [] if step is None else step if isinstance(step, list) else [step]
        return tokens or None

    def reset(self, token_ids: list[int] | None) -> None:
        """Begin again with these tokens."""
        self.init_state()
        for token in token_ids or ():
            if self.completed:
                break
            self.add(token)

    def add(self, token_id: int) -> tuple[bool, bool]:
        """Take a token: (whether it completes a constraint, whether it is a step in one)."""
        if self.completed:
            return True, False
        begun = self.inprogress_constraint
        if begun is not None:
            stepped, complete, reset = begun.update(token_id)
            if complete:
                self.complete_constraints.append(begun)
                self.inprogress_constraint = None
            elif reset:
                self.pending_constraints.append(begun.copy(stateful=False))
                self.inprogress_constraint = None
            return complete, stepped
        for index, constraint in enumerate(self.pending_constraints):
            if not constraint.does_advance(token_id):
                continue
            stepped, complete, _ = constraint.update(token_id)
            if complete:
                self.complete_constraints.append(constraint)
            elif stepped:
                self.inprogress_constraint = constraint
            if complete or stepped:
                del self.pending_constraints[index]
            return complete, stepped
        return False, False

    def copy(self, stateful: bool = True) -> "ConstraintListState":
        """An independent copy, with the progress if `stateful`."""
        new = ConstraintListState(self.constraints)
        if stateful:
            begun = self.inprogress_constraint
            new.complete_constraints = [c.copy(stateful=True) for c in self.complete_constraints]
            new.inprogress_constraint = None if begun is None else begun.copy(stateful=True)
            new.pending_constraints = [c.copy(stateful=True) for c in self.pending_constraints]
        return new


def read_constraints(constraints: Any, force_words_ids: Any) -> list[Constraint]:
    """The constraints that the settings name: objects, phrases (lists of ids), choices (lists of lists)."""
    found: list[Constraint] = list(constraints or ())
    for constraint in found:
        if not isinstance(constraint, Constraint):
            raise GenerationError(
                f"constraints must be Constraint objects, but one is a {type(constraint).__name__}"
            )
    if force_words_ids is not None:
        if not isinstance(force_words_ids, (list, tuple)) or not force_words_ids:
            raise GenerationError(
                f"force_words_ids must be a non-empty list of lists of token ids, but is {force_words_ids!r}"
            )
        for words in force_words_ids:
            nested = isinstance(words, (list, tuple)) and words and isinstance(words[0], (list, tuple))
            found.append(DisjunctiveConstraint(words) if nested else PhrasalConstraint(words))
    if not found:
        raise GenerationError("constraints must hold at least one constraint, but hold none")
    return found


def _check_words(words: Any) -> None:
    if not isinstance(words, (list, tuple)) or not words:
        raise GenerationError(f"words must be a non-empty list of lists of token ids, but are {words!r}")
    for word in words:
        whole = isinstance(word, (list, tuple)) and len(word) > 0
        if not whole or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in word):
            raise GenerationError(f"a word must be a non-empty list of token ids, but is {word!r}")
