"""InstantID: InsightFace's embedding, at its own length."""

from dladiff.settings.adapters import Adapter, Reading

ADAPTER = Adapter(
    name="instantid",
    about="InstantID for SDXL (InstantX)",
    readings={"id": Reading(weights="antelopev2", kind="pack", side=112, normalised=False)},
    source="instantX-research/InstantID 23fb666d infer.py",
    differs="IdentityNet also gets the five landmarks as a drawing, which hold no identity and are not attacked",
)
