"""`spec.export.push`: the places that get a copy of an artifact, beside the storage of the job."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.messages import ExportForm
from finetune_api.v1alpha1.given import Given, has, part
from finetune_api.v1alpha1.input_specs import SecretKeyRef, SecretRef
from finetune_api.v1alpha1.markers import KeepsData, Supported
from finetune_api.v1alpha1.rule import Rule
from finetune_api.v1alpha1.spec_base import HttpUrl, Kubernetes, StoreUri, Word

HUB_REPO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$"
# A registry with a dot, a port or the name localhost, one or more parts of a repository, and a tag: as in the grammar
# of github.com/distribution/reference, but registry and tag must be given.
OCI_REFERENCE_PATTERN = (
    r"^(localhost|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+:[0-9]{1,5})(:[0-9]{1,5})?"
    r"(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
)
PLACES = ("hub", "oci", "storage")
MOST_PUSHES = 8

HubRepo = Annotated[str, StringConstraints(pattern=HUB_REPO_PATTERN, max_length=193)]
OciReference = Annotated[str, StringConstraints(pattern=OCI_REFERENCE_PATTERN, max_length=512)]


class HubPush(Kubernetes):
    """A repository on a Hugging Face hub. One commit on its branch main holds the whole artifact."""

    repo: Annotated[HubRepo, Supported(), KeepsData()]
    """Organisation or user, and name: team/support-bot. The push creates the repository if it does not exist."""
    private: Annotated[bool, Supported(), KeepsData()] = True
    """Whether the repository must be private; a public one is then refused. false = a new repository is public."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret key with a token that may write to the repository. Only the export stage gets it. `finetune run` takes the
    token from the environment variable HF_TOKEN; for a hub of `endpoint`, from FINETUNE_PUSH_0_TOKEN, with the number
    of the item."""
    endpoint: Annotated[HttpUrl | None, Supported(), KeepsData()] = None
    """URL of another hub; omitted = the environment variable HF_ENDPOINT, else huggingface.co."""


class OciPush(Kubernetes):
    """A repository in an OCI registry. A tag names a manifest of the artifact."""

    reference: Annotated[OciReference, Supported(), KeepsData()]
    """Registry, repository and tag: registry.example/team/support-bot:v1. The tag moves if it exists."""
    layout: Annotated[Literal["ModelPack", "Image"], Supported(), KeepsData()] = "ModelPack"
    """ModelPack = the media types of CNCF ModelPack. Image = an OCI image of the same layers, which each container
    runtime can mount as an image volume."""
    push_secret_ref: SecretRef | None = None
    """Secret of type kubernetes.io/dockerconfigjson; omitted = no login. Only the export stage gets it. `finetune run`
    takes the login from the configuration of docker (DOCKER_CONFIG, else ~/.docker)."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt holds the CA certificate of the registry."""
    plain_http: Annotated[bool, Supported(), KeepsData()] = Field(default=False, alias="plainHTTP")
    """Use HTTP without encryption. Registries on localhost and 127.0.0.1 always get plain HTTP."""


class StoragePush(Kubernetes):
    """Another storage. Endpoint and credentials are those of the job's storage, unless they are given."""

    uri: Annotated[StoreUri, Supported(), KeepsData()]
    """Folder of the artifact: s3://bucket/support-bot. MANIFEST.json and the other files lie directly in it."""
    endpoint: Annotated[HttpUrl | None, Supported(), KeepsData()] = None
    """URL of an S3-compatible server."""
    region: Annotated[Word | None, Supported(), KeepsData()] = None
    """Region of the bucket."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Only the export stage gets it."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key ca.crt holds the CA certificate of the endpoint."""


class PushSpec(Kubernetes):
    """A place that gets a copy of an artifact: exactly one of hub, oci and storage."""

    form: Annotated[ExportForm | None, Supported(), KeepsData()] = None
    """The form to push; required if the job exports several."""
    hub: HubPush | None = None
    """A Hugging Face hub."""
    oci: OciPush | None = None
    """An OCI registry."""
    storage: StoragePush | None = None
    """Another storage than that of the job."""

    def wanted(self, forms: tuple[ExportForm, ...]) -> ExportForm:
        """Return the form to push.

        Args:
            forms: that the job exports.
        """
        return self.form or forms[0]


def _pushes(export: Given) -> list[Given]:
    listed = export.get("push")
    return [one if isinstance(one, Mapping) else {} for one in listed] if isinstance(listed, list) else []


def _no_single_place(export: Given) -> str | None:
    for index, push in enumerate(_pushes(export)):
        places = [name for name in PLACES if has(push, name)]
        if len(places) != 1:
            seen = " and ".join(places) or "none of them"
            return f"has {seen} in item {index}; each item must have exactly one of hub, oci and storage"
    return None


def _form_is_not_exported(export: Given) -> str | None:
    forms = export.get("forms")
    for index, push in enumerate(_pushes(export)):
        form = push.get("form")
        if isinstance(forms, list) and form is not None and forms and form not in forms:
            return f"has form {form} in item {index}, which is not among forms: {', '.join(map(str, forms))}"
        if isinstance(forms, list) and form is None and len(set(map(str, forms))) > 1:
            return f"has no form in item {index}, and forms has several: {', '.join(map(str, forms))}"
    return None


def _form_by_default(spec: Given) -> str | None:
    export = part(spec, "export")
    if export.get("forms"):
        return None
    method = part(spec, "method").get("type")
    if method is None:
        return None
    default = "merged" if method == "full" or export.get("merge") is True else "adapter"
    for index, push in enumerate(_pushes(export)):
        if push.get("form") not in (None, default):
            return f"has form {push['form']} in item {index}, and the job exports {default} alone"
    return None


def _same_place(export: Given) -> str | None:
    seen: set[str] = set()
    for index, push in enumerate(_pushes(export)):
        hub, oci, storage = (part(push, name) for name in PLACES)
        place = str(hub.get("repo") or oci.get("reference") or str(storage.get("uri", "")).rstrip("/"))
        server = str(hub.get("endpoint") or storage.get("endpoint") or "").rstrip("/")
        if place and f"{server} {place}" in seen:
            return f"names {place} again in item {index}; each place takes one artifact"
        seen.add(f"{server} {place}")
    return None


def _base_on_this_machine(spec: Given) -> str | None:
    """An adapter names its base model. Here that is a folder of this machine, which no reader of the copy has."""
    export, model = part(spec, "export"), part(spec, "model")
    uri = part(spec, "storage").get("uri")
    if has(model, "name") or not isinstance(uri, str) or not uri.startswith("file://"):
        return None
    forms = export.get("forms") or ["merged" if export.get("merge") is True else "adapter"]
    if part(spec, "method").get("type") == "full" or not isinstance(forms, list) or not forms:
        return None
    for index, push in enumerate(_pushes(export)):
        if push.get("form") == "adapter" or (push.get("form") is None and forms[0] == "adapter"):
            return f"pushes an adapter in item {index}, whose base model is a folder of this machine"
    return None


PUSH_RULES: tuple[Rule, ...] = (
    Rule(
        at=("spec", "export"),
        field="push",
        code="ExactlyOne",
        broken=_no_single_place,
        cure="give exactly one of `hub`, `oci` and `storage` in each item",
        cel="!has(self.push) || self.push.all(one,"
        " [has(one.hub), has(one.oci), has(one.storage)].filter(given, given).size() == 1)",
        says="each item of push must have exactly one of hub, oci and storage",
    ),
    Rule(
        at=("spec", "export"),
        field="push",
        code="Conflict",
        broken=_form_is_not_exported,
        cure="set form in each item to one of the forms that the job exports",
        cel="!has(self.push) || !has(self.forms) || self.forms.size() == 0 || self.push.all(one,"
        " has(one.form) ? one.form in self.forms : self.forms.size() == 1)",
        says="each item of push must have a form that the job exports; with several forms, name it",
    ),
    Rule(
        at=("spec",),
        field="export.push",
        code="Conflict",
        broken=_form_by_default,
        cure="add the form to spec.export.forms",
        cel=None,
        says="a form in export.push must be among the forms that the job exports",
    ),
    Rule(
        at=("spec", "export"),
        field="push",
        code="Conflict",
        broken=_same_place,
        cure="use another repository, tag or folder for the second artifact",
        cel=None,
        says="two items of push must not name the same place",
    ),
    Rule(
        at=("spec",),
        field="export.push",
        code="Conflict",
        broken=_base_on_this_machine,
        cure="push the form merged, or take the base model from the hub (spec.model.name)",
        cel=None,
        says="a run with storage on this machine pushes an adapter only if its base model is on the hub",
    ),
)
