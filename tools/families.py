"""Writes docs/families.md: what holds for each image-text architecture of the installed transformers, tried on a tiny random model.

python tools/families.py [NAME ...]        only print these
python tools/families.py --write           all of them, into docs/families.md
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from train.architectures import FAMILIES, POOLED, WORDS, vlm  # noqa: E402
from train.slow import Data, slow  # noqa: E402
from train.zoo import NAMES, family  # noqa: E402

from mixpo.errors import MixpoError  # noqa: E402
from mixpo.train.collate import collate  # noqa: E402
from mixpo.train.layout_check import check_sample, choose_layout  # noqa: E402
from mixpo.train.logps import Scorer  # noqa: E402
from mixpo.vlm.sampling_check import why_not_joined  # noqa: E402

SECONDS = 60
"""CPU time for one architecture; a default configuration of some is too large to shrink."""
LAYOUTS = {"tree": "packed", "shared": "shared", "plain": "plain", "single": "one by one"}


@dataclass(frozen=True)
class Result:
    """What holds for an architecture. status: exact, refused, wrong or not tried. layout, sampling, saved: where it is exact."""

    name: str
    status: str
    layout: str = ""
    sampling: str = ""
    saved: str = ""
    reason: str = ""


def try_family(name: str) -> Result:
    """Build the family, choose its layout, compare it with each response alone, sample, save and reload. Never raises."""
    signal.signal(signal.SIGPROF, _expire)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        one = FAMILIES.get(name) or (POOLED if name == "molmo2" and POOLED else family(name))
        data = Data(one)
        model = vlm(one)
    except Exception as error:  # a class of transformers may raise anything on sizes that do not suit it
        status = "refused" if "encoder-decoder" in str(error) or "image_token_id" in str(error) else "not tried"
        return Result(name, status, reason=_line(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return _try_model(name, model, data)
    except MixpoError as error:
        # A forward pass that fails may be the tiny configuration's fault.
        return Result(name, "not tried" if error.code == "family-forward-fails" else "refused", reason=_line(error))
    except TimeoutError as error:
        return Result(name, "not tried", reason=_line(error))
    except Exception as error:  # reported in the table, and the test fails
        return Result(name, "wrong", reason=f"{type(error).__name__}: {_line(error)}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _try_model(name: str, model: Any, data: Data) -> Result:
    layout, _ = choose_layout(model, check_sample(chunk.group for chunk in data.chunks), data.get, torch.float32, gradients=True)
    with torch.no_grad():
        expected = slow(model.model, data)
        scored = Scorer(model.model, layout)(collate(model, data.chunks, data.get, layout)).sums
    if not torch.allclose(scored, expected, rtol=1e-4, atol=1e-4):
        return Result(name, "wrong", reason=f"log-probs differ by {float((scored - expected).abs().max()):.2g}")
    if not _saved(model.model, data):
        return Result(name, "refused", reason="the saved model gives other log-probs than the one in memory")
    rows = model.model.get_output_embeddings().weight.shape[0]
    sampled = replace(model, cache={"banned_ids": torch.arange(rows) < WORDS})
    together = why_not_joined(sampled, list(data.prompts.values()))
    return Result(name, "exact", LAYOUTS[layout], "one by one" if together else "batched", "yes")


def _saved(model: Any, data: Data) -> bool:
    """Whether the saved model gives the same log-probs again."""
    loader: Any = transformers.AutoModelForImageTextToText if hasattr(model.config, "vision_config") else type(model)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        before = slow(model, data)
        model.save_pretrained(folder)
        again = loader.from_pretrained(folder, attn_implementation=model.config._attn_implementation)
        return torch.allclose(slow(again.eval(), data), before, rtol=1e-4, atol=1e-4)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:110].replace("|", "/")


def _expire(*_: object) -> None:
    raise TimeoutError(f"not built within {SECONDS} s")


def page(results: list[Result]) -> str:
    """docs/families.md."""
    counts = {status: sum(result.status == status for result in results) for status in ("exact", "refused", "wrong", "not tried")}
    lines = [
        "# Model families",
        "",
        "Generated by `tools/families.py`: do not edit. Every image-text-to-text architecture of transformers "
        f"{transformers.__version__}, shrunk from its default",
        "configuration to a tiny random model with made-up prompts of no, one and several images. "
        f"{counts['exact']} are exact, {counts['refused']} refused in a sentence, {counts['wrong']} wrong,",
        f"{counts['not tried']} not tried, because the tool cannot build a tiny model or image of theirs yet or has not run them; "
        "the checks at the start of a run decide for those.",
        "",
        "Exact: log-probs in float32 equal those of each response alone, gradients too. *Layout* is the one that training chooses,",
        "*sampling* whether prompts may share a batch, *saved* whether the saved model gives the same log-probs again.",
        "See [training](training.md#layout-check).",
        "",
        "| architecture | status | layout | sampling | saved | why not |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| `{r.name}` | {r.status} | {r.layout} | {r.sampling} | {r.saved} | {r.reason} |" for r in results]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    for name in options.names or NAMES:
        results.append(try_family(name))
        print(results[-1], flush=True)
    if options.write:
        (ROOT / "docs" / "families.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
