"""From probabilities to coded answers: one question each, or several that exclude one another, such as A, B, C or D."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault
from pacs_ai.pipeline import Classification, Code, Question

if TYPE_CHECKING:
    from collections.abc import Sequence


def answers(questions: Sequence[Question], chances: Sequence[float]) -> tuple[Classification, ...]:
    """Answer the card's questions.

    Questions of one concept are the alternatives of a single one (breast composition a, b, c or d): the most probable
    one is answered, if it reaches its threshold. Any other question is answered by its own threshold; a question that
    is not `reported` is answered to nobody.

    Parameters
    ----------
    questions
        Of the card.
    chances
        Probability of each question's positive answer, 0 to 1, in their order.

    Raises
    ------
    PipelineFault
        There are more or fewer probabilities than questions, or one is none.
    """
    if len(questions) != len(chances):
        raise PipelineFault(
            f"the model gives {len(chances)} probabilities, but its card asks {len(questions)} questions"
        )
    if not all(0.0 <= chance <= 1.0 for chance in chances):
        raise PipelineFault(
            f"the model gives probabilities outside of 0 to 1: {', '.join(f'{c:.3g}' for c in chances)}"
        )
    alternatives: dict[Code, list[tuple[Question, float]]] = {}
    for question, chance in zip(questions, chances, strict=True):
        if question.reported:
            alternatives.setdefault(question.concept, []).append((question, float(chance)))
    given = [_answer(among) for among in alternatives.values()]
    return tuple(answer for answer in given if answer is not None)


def _answer(among: Sequence[tuple[Question, float]]) -> Classification | None:
    question, chance = max(among, key=lambda pair: pair[1])
    if chance >= question.threshold:
        return Classification(
            question.concept, question.positive, chance, threshold=question.threshold if len(among) == 1 else None
        )
    if question.negative is not None and len(among) == 1:
        return Classification(question.concept, question.negative, chance, threshold=question.threshold)
    return None
