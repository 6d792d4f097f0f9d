"""The separation of workers from secrets: workers run model code and pickles, the agent holds the keys to storage."""

import ctypes
import os
import struct
from collections.abc import Collection, Mapping

from finetune_trainer.process.ties import libc, prctl

PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
SECBIT_NOROOT_LOCKED = 0b11  # uid 0 never gains capabilities by exec
CAPABILITY_VERSION_3 = 0x20080522

# Variables that a worker inherits; all others (storage keys, hub and gang tokens) stay with the agent.
INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
INHERITED_PREFIXES = (
    "LC_",
    "PYTHON",
    "XDG_",
    # GPUs and their libraries
    "CUDA_",
    "CUBLAS_",
    "CUDNN_",
    "NVIDIA_",
    "NVTE_",
    "HSA_",
    "ROCR_",
    "HIP_",
    "MIOPEN_",
    "PYTORCH_",
    "TORCH",  # also TORCHINDUCTOR_, TORCHDYNAMO_
    "TRITON_",
    "DS_",
    # networks between nodes
    "NCCL_",
    "RCCL_",
    "GLOO_",
    "FI_",  # libfabric: EFA and others
    "OFI_",
    "UCX_",
    "UCC_",
    "SHARP_",
    "IBV_",
    "RDMAV_",
    "MLX5_",
    # threads on CPUs; OMP_NUM_THREADS itself is the zygote's
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
    "MALLOC_",
)
# Withheld without a line in the log: the agent's own variables, and those that Kubernetes sets in every pod.
EXPECTED_PREFIXES = ("FINETUNE_", "AWS_", "KUBERNETES_")
EXPECTED = ("HF_TOKEN", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "SHELL", "TERM", "_")
# Further variables for the trackers that the job names, by transformers' names; no tracker gets the keys to storage.
TRACKERS: Mapping[str, tuple[str, ...]] = {
    "azure_ml": ("AZUREML_",),
    "clearml": ("CLEARML_", "TRAINS_"),
    "codecarbon": ("CODECARBON_",),
    "comet_ml": ("COMET_",),
    "dagshub": ("DAGSHUB_", "MLFLOW_"),
    "dvclive": ("DVCLIVE_", "DVC_"),
    "flyte": ("FLYTE_",),
    "mlflow": ("MLFLOW_", "HF_MLFLOW_"),
    "neptune": ("NEPTUNE_",),
    "swanlab": ("SWANLAB_",),
    "trackio": ("TRACKIO_",),
    "wandb": ("WANDB_",),
}
TRACKER_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def drop_capabilities() -> None:
    """Drop all capabilities: a worker that runs as root could otherwise read the agent's memory."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() == 0:  # refused without CAP_SETPCAP, as in a restricted pod, which has nothing to drop
        libc.prctl(PR_SET_SECUREBITS, SECBIT_NOROOT_LOCKED, 0, 0, 0)
    header, no_capabilities = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    if libc.capset(header, no_capabilities) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")


def withheld(environ: Mapping[str, str], trackers: Collection[str] = ()) -> list[str]:
    """Return the names of variables that a user may have set for the workers and that they do not get."""
    passed_on = worker_environment(environ, trackers)
    services = {name.removesuffix("_SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")}
    return sorted(
        name
        for name in environ
        if name not in passed_on
        and name not in EXPECTED
        and not name.startswith((*EXPECTED_PREFIXES, *(f"{service}_" for service in services)))
    )


def worker_environment(environ: Mapping[str, str], trackers: Collection[str] = ()) -> dict[str, str]:
    """Return the environment of zygote and workers: an allow-list of the agent's, and settings that every worker needs.

    Args:
        trackers: transformers' names of the trackers that the job reports to.
    """
    prefixes = (*INHERITED_PREFIXES, *(prefix for name in trackers for prefix in TRACKERS.get(name, ())))
    network = TRACKER_NETWORK if trackers else ()
    inherited = {
        name: value
        for name, value in environ.items()
        if name in INHERITED or name.upper() in network or name.startswith(prefixes)
    }
    return {
        "HOME": "/tmp",  # for a user without an entry in passwd; torch and triton keep caches below it
        "USER": "finetune",  # getpass fails for such a user otherwise
        **inherited,
        "OMP_NUM_THREADS": "1",  # a parallel region in the zygote would hang the first one of every child
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # is_available() without touching CUDA before the fork
        "DS_ACCELERATOR": accelerator(environ),
    }


def accelerator(environ: Mapping[str, str]) -> str:
    """Return the name of DeepSpeed's accelerator, so that it does not probe for ten others."""
    hidden = environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    return "cuda" if os.path.exists("/dev/nvidiactl") and not hidden else "cpu"  # noqa: PTH110
