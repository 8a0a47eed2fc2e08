"""Imports what a process of mixpo that samples or trains needs: `forked` forks its processes from one that has imported this."""

import contextlib
import gc

import mixpo.cli
import mixpo.commands.plan
import mixpo.engines.transformers
import mixpo.pipeline
import mixpo.stages.train
import mixpo.train.loop
import mixpo.train.parallel
import mixpo.vlm.save  # noqa: F401

for name in ("accelerate", "peft", "train.cases"):
    with contextlib.suppress(ImportError):
        __import__(name)
gc.collect()
gc.freeze()  # so that no collection in a child copies these pages
