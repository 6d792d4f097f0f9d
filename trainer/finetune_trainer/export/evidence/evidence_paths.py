"""The paths of the evidence in an artifact. It lies within the artifact, so that every copy of the artifact has it."""

EVIDENCE = "evidence/"
LINEAGE = f"{EVIDENCE}lineage.json"
BILL = f"{EVIDENCE}sbom.cdx.json"
PLAN_COPY = f"{EVIDENCE}plan.json"
ANNEX = f"{EVIDENCE}annex.md"
SIGNATURE = f"{EVIDENCE}model.sig"
