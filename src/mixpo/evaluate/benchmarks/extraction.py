"""How a judge finds the short answer in a response, for the benchmarks whose authors do it so. The wording is ours."""

from __future__ import annotations

import re

from mixpo.evaluate.benchmarks.base import Fields
from mixpo.types import Question

NO_ANSWER = "NO ANSWER"
PROMPT = f"""\
Find the short answer that a response to a question about an image comes to. Copy it; do not solve the question, and correct nothing.
Write it in the form that the question asks for: the letter of an option, a whole number, a decimal number, a list, or a formula.
If the response comes to no answer, write {NO_ANSWER}.

Question: Hint: give a whole number. How many boats have a sail?
Response: Two boats lie at the pier and three are on the water. All of those on the water have a sail, so it is three of them.
Extracted answer: 3

Question: Hint: give a number with one decimal place. How heavy is the parcel?
Response: The pointer stands half way between 2 and 3 kilograms.
Extracted answer: 2.5

Question: Hint: give a number with two decimal places. What is the share of the second bar?
Response: The second bar is 7 out of 20, which is 0.35 of the whole.
Extracted answer: 0.35

Question: Hint: give a list. Between which two years did the price fall most?
Response: It fell most from 2011 to 2012.
Extracted answer: [2011, 2012]

Question: Hint: give the letter of the option. Which is the longest side? Choices: (A) AB (B) BC (C) AC
Response: AC is opposite to the right angle, so that side is the longest.
Extracted answer: C

Question: {{question}}
Response: {{answer}}
Extracted answer:"""
_ANNOUNCED = re.compile(r"(?i)extracted answer\W*?:\s*(.*)")
_LETTER = re.compile(r"(?:.*\(([A-Za-z])\).*|([A-Za-z])[.:)]?|([A-Z])[.:)]\s.*)")
LONGEST = 4
"""Maximum words of a reply that counts as an answer without "Extracted answer:"."""


def read(reply: str, question: Question, facts: Fields) -> str | None:
    """The answer in a judge's reply: what it announces as "Extracted answer:", or a reply of one line in the form of an answer.

    "" where the judge says that there is none; None where the reply is neither, which is no answer and no mistake of the model.
    """
    announced = _ANNOUNCED.findall(reply)
    lines = [line for line in reply.splitlines() if line.strip()]
    answer = announced[-1] if announced else lines[0] if len(lines) == 1 else ""
    answer = answer.strip().lstrip("*`\"' ").rstrip("*`\"' .")
    if answer.upper() == NO_ANSWER:
        return ""
    return answer if answer and (announced or _has_form(answer, question)) else None


def _has_form(answer: str, question: Question) -> bool:
    if question.kind == "choice":
        return bool(_LETTER.fullmatch(answer)) or answer.casefold() in {choice.casefold() for choice in question.choices}
    if question.kind == "number":
        return bool(re.search(r"\d", answer)) and len(answer.split()) <= LONGEST
    return len(answer.split()) <= LONGEST or bool(re.search(r"[\d\\=]", answer) and len(answer) <= 60)
