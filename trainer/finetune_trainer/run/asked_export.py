"""Whether the last export of a run is what its job asks for now."""

import os
from collections.abc import Mapping

from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.export.measured_digest import stored_measures
from finetune_trainer.export.push.pushing import copies_are_recorded
from finetune_trainer.export.stored_artifact import fitting_artifact
from finetune_trainer.judge.stored_judgement import is_judged
from finetune_trainer.storage import ObjectStore
from finetune_trainer.suites.stored_suites import is_evaluated


def is_made_as_asked(spec: FineTuneJobSpec, store: ObjectStore, run: str, access: Mapping[str, str]) -> bool:
    """Return whether every artifact is in storage with the settings of the job and the signature of this machine's key,
    and was pushed to every place.

    Args:
        run: key prefix of the run, with the trailing slash.
        access: environment variables that open the places of pushes.
    """
    method = spec.method.type
    request = ExportRequest.of(spec.export, method).with_suites(spec.evaluation).signed_with(os.environ)
    measured = stored_measures(store, run, request)
    made = all(fitting_artifact(store, run, FormFiles.of(form, method), request, measured) for form in request.forms)
    return made and copies_are_recorded(request.pushes, request.forms, method, store, run, access)


def is_measured_as_asked(spec: FineTuneJobSpec, store: ObjectStore, run: str, environ: Mapping[str, str]) -> bool:
    """Return whether the last export was judged, and ran through suites, with the settings and gates of the job. What
    failed is not tried again in the same circumstances.

    Args:
        environ: that of the export stage.
    """
    return is_judged(store, run, spec.export, environ) and is_evaluated(store, run, spec, environ)
