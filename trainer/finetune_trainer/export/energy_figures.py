"""The energy of a run, as the papers, the report and the card tell it."""

from pydantic import ValidationError

from finetune_api.beats import Progress
from finetune_api.contract import File
from finetune_api.energy import Energy
from finetune_trainer.storage import NotFoundError, ObjectStore

NOT_MEASURED = "not measured"
JOULES = 3.6e6  # of a kWh


def run_energy(store: ObjectStore, run: str) -> Energy | None:
    """Return the energy of a run up to its end; None if it was not measured.

    Args:
        run: key prefix of the run, with the trailing slash.
    """
    try:
        return Progress.model_validate_json(store.get(run + File.DONE)).energy
    except (NotFoundError, ValidationError):
        return None


def energy_text(energy: Energy | None) -> str:
    """Return the energy in words, with the counter that measured it."""
    parts = []
    if energy is not None and energy.gpus is not None:
        gpus = "1 GPU" if energy.devices == 1 else f"{energy.devices:,} GPUs"
        parts.append(f"{energy.gpus / JOULES:.3g} kWh of {gpus}, by NVML")
    if energy is not None and energy.machine is not None:
        parts.append(f"{energy.machine / JOULES:.3g} kWh of the processors of the whole machine, by RAPL")
    return "; ".join(parts) or NOT_MEASURED


def energy_facts(energy: Energy | None) -> dict[str, float | int] | str:
    """Return the energy as the lineage has it, in joules."""
    if energy is None:
        return NOT_MEASURED
    facts: dict[str, float | int] = {}
    if energy.gpus is not None:
        facts |= {"gpusJoules": round(energy.gpus, 3), "gpus": energy.devices}
    if energy.machine is not None:
        facts["machineJoules"] = round(energy.machine, 3)
    return facts or NOT_MEASURED
