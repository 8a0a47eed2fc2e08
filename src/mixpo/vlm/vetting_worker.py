"""The program that tries a chat template and a tokenizer before they run in mixpo's own process. Run as a file.

Standard input: a JSON object with `template`, `tokens` (special tokens by name) and `tokenizer` (path of tokenizer.json, or "").
Standard output: a line for each trial that begins, then what is wrong as a JSON string, "" for nothing. A limit ends the process. Imports
nothing of mixpo, which imports MAX_CHARACTERS alone from here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

PROCESSOR_S = 5
"""Processor time of each of the two trials."""
MEMORY = 2 << 30
"""Address space that a trial may need beyond the imports."""
MAX_CHARACTERS = 200_000
"""Longest output for the conversations below; also the limit for each rendering in `prompt`, beyond the text that goes in."""

TEXT = "What is 1 + 1? 答案是二。 <b>'\"{{ x }}</b>\n" * 20
PARTS: dict[str, Any] = {"text": {"type": "text", "text": TEXT}, "image": {"type": "image"}}
USER = {"role": "user", "content": [PARTS["text"]]}
SEEN = {"role": "user", "content": [PARTS["image"], PARTS["text"], PARTS["image"]]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "Two. Final answer: 2"}]}
CONVERSATIONS = ([USER], [SEEN], [USER, ANSWER], [SEEN, ANSWER, USER])

TEXTS = (TEXT * 5, "a" * 5_000 + "!", " " * 5_000 + "x", "1" * 5_000 + "_", "ab" * 2_500 + "\n", "答" * 2_000)
"""Texts on which patterns of exponential cost never end; ordinary ones take milliseconds."""


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    request = json.load(sys.stdin)
    from tokenizers import Tokenizer
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    print("chat template", file=replies, flush=True)
    problem = template_problem(render_jinja_template, request["template"], request["tokens"])
    if not problem and request["tokenizer"]:
        print("tokenizer.json", file=replies, flush=True)
        problem = tokenizer_problem(Tokenizer, request["tokenizer"])
    replies.write(json.dumps(problem))
    replies.flush()


def template_problem(render: Any, template: str, tokens: dict[str, str]) -> str:
    """What is wrong with a chat template. One that refuses a conversation is not: not every family takes all of them."""
    from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

    for number, conversation in enumerate(CONVERSATIONS):
        _limit_time()
        try:
            texts, _ = render([conversation], chat_template=template, add_generation_prompt=number < 2, **tokens)
        except TemplateSyntaxError as error:
            return f"chat template: line {error.lineno}: {error.message}"
        except MemoryError:
            return f"chat template: needs more than {MEMORY >> 30} GiB of memory"
        except Exception as error:  # a template raises whatever its expressions raise
            if number == 0 or not isinstance(error, TemplateError) or isinstance(error, UndefinedError):
                return f"chat template: refuses a conversation ({type(error).__name__}: {str(error)[:200]})"
            continue
        if len(texts[0]) > MAX_CHARACTERS:
            return f"chat template: writes {len(texts[0]):,} characters for a short conversation"
    return ""


def tokenizer_problem(loader: Any, path: str) -> str:
    """What is wrong with a tokenizer."""
    _limit_time()
    try:
        tokenizer = loader.from_file(path)
        for text in TEXTS:
            if len(tokenizer.encode(text).ids) > 20 * len(text.encode()):
                return "tokenizer.json: gives more tokens than a text has bytes"
    except BaseException as error:  # a panic of the library is no Exception
        return f"tokenizer.json: cannot be used ({type(error).__name__}: {str(error)[:200]})"
    return ""


def _limit_time() -> None:
    """Without a handler the signal ends the process even inside compiled code. Windows has none; there the parent's limit holds alone."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_S)


def _limit_memory() -> None:
    try:
        import resource

        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    except (ImportError, OSError):
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
