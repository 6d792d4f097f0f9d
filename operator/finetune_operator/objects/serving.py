"""The containers of a user's image beside the export, in its pod: the server of `spec.export.serveTest.image`, and the
programs of `spec.evaluation.suites`. Pure."""

from dataclasses import dataclass, replace

from finetune_api.contract import PodPath
from finetune_api.v1alpha1 import Resources
from finetune_api.v1alpha1.suite_spec import container_suites
from finetune_operator.objects.environment import variable
from finetune_operator.objects.facts import SERVER, suite_container
from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.kinds import Object
from finetune_operator.objects.pods import SCRATCH, requirements
from finetune_operator.settings import Settings

SERVE_VOLUME = "finetune-serve"

# The export writes the shell script `start`, which begins a server or a program. This script takes it as `running`,
# which the export removes when the command must end. The other side is `container_order.py` of the trainer. The kernel
# sends no SIGTERM to a first process without a trap, and a shell runs its trap at once only if it waits. A container
# that was killed and started again, for want of memory, finds `running`, and tells the end of its command.
WATCH = """\
trap 'exit 0' TERM
export BEGAN_IN="$PWD"
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


@dataclass(frozen=True)
class OrderedContainer:
    """A container beside the export that runs what the export orders. It starts before the export's, and ends with it.

    Attributes:
        volume: name of the volume that both share; another of its name and `-tmp` is the container's alone.
        folder: where the export and the container mount the volume.
    """

    name: str
    image: str
    resources: Resources | None
    volume: str
    folder: str

    @property
    def volumes(self) -> tuple[Object, Object]:
        """The volumes of the pod that the container needs beside those of every pod."""
        return {"name": self.volume, "emptyDir": {}}, {"name": self._tmp, "emptyDir": {}}

    @property
    def mount(self) -> Object:
        """The mount of the shared folder."""
        return {"name": self.volume, "mountPath": self.folder}

    def manifest(self, settings: Settings) -> Object:
        """Return the container. It sees the models in the scratch space, and has no key: no variable of the job, no
        Secret, no token."""
        return {
            "name": self.name,
            "image": self.image,
            "imagePullPolicy": settings.image_pull_policy,
            "restartPolicy": "Always",
            "command": ["sh", "-c", WATCH.format(folder=self.folder)],
            "env": [variable("HOME", PodPath.TMP.value), variable("USER", "finetune")],
            "resources": requirements(self.resources) if self.resources else {},
            "volumeMounts": [
                self.mount,
                {"name": SCRATCH, "mountPath": PodPath.SCRATCH.value, "readOnly": True},
                {"name": self._tmp, "mountPath": PodPath.TMP.value},
                {"name": "finetune-shm", "mountPath": PodPath.SHM.value},
            ],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }

    @property
    def _tmp(self) -> str:
        return f"{self.volume}-tmp"


def serving_container(job: AcceptedJob) -> OrderedContainer | None:
    """Return the container that serves artifacts; None if the job names no image."""
    test = job.spec.export.serve_test
    if test is None or test.image is None:
        return None
    return OrderedContainer(SERVER, test.image, test.resources, SERVE_VOLUME, PodPath.SERVE.value)


def evaluating_containers(job: AcceptedJob) -> list[OrderedContainer]:
    """Return the containers of the suites that name an image."""
    return [
        OrderedContainer(
            name=suite_container(one.name),
            image=str(one.image),
            resources=one.resources,
            volume=f"finetune-{suite_container(one.name)}",
            folder=f"{PodPath.SUITES.value}/{one.name}",
        )
        for one in container_suites(job.spec.evaluation.suites)
    ]
