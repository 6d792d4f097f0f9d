"""Who is who in a cluster: one certificate authority, one certificate of the API server, a token for everyone else."""

import base64
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

from tests.cluster.local.network import API_PORT, API_SERVICE_IP, DNS_DOMAIN, GATEWAY, NODES

INSIDE = f"https://{GATEWAY}:{API_PORT}"

# user of each token, with its groups; the file of the kubeconfig is the user's last part
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
    "coredns": "system:masters",  # it lists services and namespaces; a role of its own would be one more thing to apply
    **{f"system:node:{node.name}": "system:nodes" for node in NODES},
}


def make(folder: Path) -> None:
    """Write keys, certificates, tokens and a kubeconfig per user into `folder`."""
    folder.mkdir(parents=True, mode=0o700)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DNS_DOMAIN}"]
    addresses = ["127.0.0.1", GATEWAY, API_SERVICE_IP]
    subject = ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test-cluster",
             "-days", "365", "-addext", "keyUsage=critical,keyCertSign,digitalSignature")  # fmt: skip
    # one pair for both ends of the API server: it serves with it, and shows it to the kubelets (hence system:masters)
    _openssl(folder, "req", "-x509", *key, "-keyout", "apiserver.key", "-out", "apiserver.crt",
             "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "365", "-subj", "/O=system:masters/CN=kube-apiserver",
             "-addext", f"subjectAltName={subject}", "-addext", "basicConstraints=critical,CA:FALSE",
             "-addext", "extendedKeyUsage=serverAuth,clientAuth")  # fmt: skip
    # not by genpkey: the API server does not read PKCS 8 here
    _openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "tokens.key")
    rows = []
    for user, groups in USERS.items():
        token = secrets.token_hex(16)
        rows.append(f'{token},{user},{user},"{groups}"\n')
        write_kubeconfig(folder / f"{user.rpartition(':')[2]}.kubeconfig", INSIDE, folder / "ca.crt", token)
    (folder / "tokens.csv").write_text("".join(rows))


def admin_token(folder: Path) -> str:
    return (folder / "tokens.csv").read_text().partition(",")[0]


def write_kubeconfig(path: Path, server: str, authority: Path, token: str) -> None:
    """A kubeconfig that needs no other file; JSON, which is YAML too."""
    data = base64.b64encode(authority.read_bytes()).decode()
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority-data": data}}],
        "users": [{"name": "local", "user": {"token": token}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
        "current-context": "local",
    }
    path.touch(0o600)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.strip()}")
