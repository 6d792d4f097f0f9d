"""Values that the chart is rendered with: as it comes, for some namespaces, and with everything that can be set."""

from typing import Any

DEFAULT: dict[str, Any] = {}
NAMESPACED: dict[str, Any] = {"watchNamespaces": ["team-a", "team-b"]}
CLOSED: dict[str, Any] = {**NAMESPACED, "networkPolicy": {"enabled": True}}
NOTHING: dict[str, Any] = {
    "replicas": 1,
    "crds": {"enabled": False},
    "admissionPolicy": {"enabled": False},
    "rbac": {"create": False, "aggregate": False},
    "serviceAccount": {"create": False},
    "metrics": {"service": {"enabled": False}},
    "tokenKey": {"existingSecret": "ours"},
    "strategy": {"type": "Recreate", "rollingUpdate": None},
}
EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "image": {"repository": "mirror/operator", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
    "trainerImage": {"repository": "mirror/trainer", "tag": "v2", "pullPolicy": "Never"},
    "imagePullSecrets": [{"name": "pull"}],
    "operator": {
        "logLevel": "debug",
        "concurrency": 50,
        "resyncSeconds": 86400,
        "pollSeconds": 60,
        "leaseSeconds": 30,
        "forceDelete": False,
        "readNodes": False,
        "hubEndpoint": "https://hub.example.org",
        "runAsUser": "",
        "allowedVolumeTypes": ["configMap", "persistentVolumeClaim"],
        "allowedServiceAccounts": ["trainer"],
        "allowedPriorityClasses": ["batch-low", "batch-high"],
    },
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
    "tokenKey": {"existingSecret": "ours", "key": "token"},
    "crds": {"enabled": True, "keep": False},
    "serviceAccount": {"name": "runner", "annotations": {"cloud/role": "none"}},
    "metrics": {
        "service": {"port": 9090, "annotations": {"scrape": "yes"}},
        "serviceMonitor": {"enabled": True, "interval": "1m", "labels": {"prometheus": "main"}},
    },
    "podDisruptionBudget": {"minAvailable": "50%"},
    "resources": {"limits": {"cpu": 2, "memory": "1Gi"}},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]
            }
        }
    },
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "finetune-operator"}},
        }
    ],
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "proxy:3128"},
        {"name": "FINETUNE_OPERATOR_LOG_LEVEL", "value": "warning"},
        {"name": "HTTPS_PROXY", "value": "proxy:3129"},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
    ],
    "labels": {"team": "platform", "app.kubernetes.io/name": "not-yours"},
    "podLabels": {"sidecar": "no", "app.kubernetes.io/instance": "not-yours"},
    "annotations": {"owner": "platform"},
    "podAnnotations": {"sidecar.inject": "false"},
}
ALL = {"default": DEFAULT, "namespaced": NAMESPACED, "closed": CLOSED, "nothing": NOTHING, "everything": EVERYTHING}
