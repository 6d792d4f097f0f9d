"""The container that serves artifacts in the export pod, for `spec.export.serveTest.image`. Pure."""

from dataclasses import replace

from finetune_api.contract import PodPath
from finetune_operator.objects.environment import variable
from finetune_operator.objects.facts import SERVER
from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.kinds import Object
from finetune_operator.objects.pods import SCRATCH, requirements
from finetune_operator.settings import Settings

SERVE_VOLUME, SERVE_TMP = "finetune-serve", "finetune-serve-tmp"

# The export writes the shell script `start`, which begins a server. This script takes it as `running`, which the export
# removes when the server must end. The other side is `server_order.py` of the trainer. The kernel sends no SIGTERM to a
# first process without a trap, and a shell runs its trap at once only if it waits. A container that was killed and
# started again, for want of memory, finds `running`, and tells the end of its server.
WATCH = """\
trap 'exit 0' TERM
cd {folder}
if [ -e running ] && [ ! -e ended ]; then echo 137 > ended.part; mv ended.part ended; fi
while :; do
  until [ -e start ]; do sleep 1 & wait $!; done
  mv start running
  (sh ./running > log 2>&1; echo $? > ended.part; mv ended.part ended) &
  while [ -e running ] && [ ! -e ended ]; do sleep 1 & wait $!; done
  [ -e ended ] || kill "$(cat pid)"
  for second in 1 2 3 4 5 6 7 8 9 10; do [ -e ended ] || sleep 1; done
  [ -e ended ] || kill -9 "$(cat pid)"
  wait
done
"""


def without_server(job: AcceptedJob) -> AcceptedJob:
    """Return a job whose export pod has no such container. Its pods still get the fields as the user wrote them."""
    test = job.spec.export.serve_test
    if test is None:
        return job
    kept = test.model_copy(update={"image": None, "resources": None})
    export = job.spec.export.model_copy(update={"serve_test": kept})
    return replace(job, spec=job.spec.model_copy(update={"export": export}))


def serving_container(job: AcceptedJob, settings: Settings) -> Object | None:
    """Return the container, which starts before the export's and ends with it; None if the job names no image.

    It sees the models in the scratch space, and has no key: no variable, no Secret, no token.
    """
    test = job.spec.export.serve_test
    if test is None or test.image is None:
        return None
    folder = PodPath.SERVE.value
    return {
        "name": SERVER,
        "image": test.image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "command": ["sh", "-c", WATCH.format(folder=folder)],
        "env": [variable("HOME", PodPath.TMP.value), variable("USER", "finetune")],
        "resources": requirements(test.resources) if test.resources else {},
        "volumeMounts": [
            {"name": SERVE_VOLUME, "mountPath": folder},
            {"name": SCRATCH, "mountPath": PodPath.SCRATCH.value, "readOnly": True},
            {"name": SERVE_TMP, "mountPath": PodPath.TMP.value},
            {"name": "finetune-shm", "mountPath": PodPath.SHM.value},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
