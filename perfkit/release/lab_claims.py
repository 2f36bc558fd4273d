"""What was claimed of an index set beforehand, held against what the lab measured."""

from __future__ import annotations

from perfkit.lab.design import ALL, NONE
from perfkit.lab.results import Lab
from perfkit.release.claims import Judged, MeasuredClaim, judge


def judged(lab: Lab) -> list[Judged]:
    """The claims that a lab can judge: not those on load levels, on failures or on one set-up.

    An arm that a claim is about has no index where it is the `before` of the configuration, else all.
    """
    claims = [
        {**own, "arm": NONE if own.get("arm") and own["arm"] == lab.record.get("baseline") else ALL}
        for own in lab.record.get("claims", ())
        if not own.get("scenario") and not own.get("preset") and own["measure"] != "error_rate"
    ]
    inserts = [c.item for c in lab.changes if lab.is_insert(c)]
    return judge(claims, MeasuredClaim(lab.ablation.run, lab.analysis, lab.ablation, NONE, ALL, inserts))
