"""Controls of a job's circuit: `--evidence full`. Ways in which its figures could be right and mean nothing.

Four searches and some healing beside the job's own, which then takes two to five times as long. Test prompts are
read for figures only, and unseen sets not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporter.evidence.controls import Controls
from exporter.job.build import Found
from exporter.job.clock import Clock
from exporter.job.plan import Plan
from exporter.studies.control_cuts import Subject, try_each_unit, try_random, try_without
from exporter.studies.control_searches import try_resampled, try_shuffled

CONTROLS: dict[str, Callable[[Subject], Any]] = {
    "completeness": try_without,
    "minimality": try_each_unit,
    "random": try_random,
    "shuffled": try_shuffled,
    "stability": try_resampled,
}
"""Each field of `Controls`, and how it is found; in the order in which they run, the cheap ones first."""


def run_controls(plan: Plan, found: Found, clock: Clock) -> Controls:
    """All of them, each a stage of the job: give this to `run_job` as its `study`."""
    subject, values = Subject(plan, found), {}
    for name, run in CONTROLS.items():
        with clock.stage(name):
            values[name] = run(subject)
    return Controls(**values)
