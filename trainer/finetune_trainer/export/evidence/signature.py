"""The signature of an artifact, in the format of OpenSSF model signing (https://github.com/sigstore/model-transparency).

Its library is imported in the functions, because it takes about a second and most runs do not sign.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import Env, File
from finetune_api.errors import DataError, Problem, SpecError
from finetune_trainer.export.evidence.evidence_paths import SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})  # those that model signing knows
# What the library raises for a signature that somebody else has written, whatever it holds.
FOREIGN = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
UNSIGNED = (SIGNATURE, File.MANIFEST.value)  # the signature cannot sign itself, and the list of files names it


def sign_artifact(folder: Path, key: Path) -> str:
    """Sign every file of an artifact, and return the id of the key.

    Args:
        key: a private key on an elliptic curve, PEM, without a password.

    Raises:
        SpecError: the key cannot be used.
    """
    identity = key_id(key)
    from model_signing import signing

    config: Any = signing.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_signer(private_key=key).set_hashing_config(_hashed())
    config.sign(folder, folder / SIGNATURE)
    return identity


def check_signature(folder: Path, public_key: Path) -> str:
    """Check the signature of an artifact, and return the id of the key.

    Raises:
        SpecError: the key cannot be read.
        DataError: the signature is missing, or is not that of this key and these files.
    """
    identity = public_key_id(public_key)
    if not (folder / SIGNATURE).is_file():
        message = f"the artifact has no {SIGNATURE}"
        raise DataError(
            Problem(code="NotSigned", field=SIGNATURE, message=message, cure="export it with spec.export.signing")
        )
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    config: Any = verifying.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_verifier(public_key=public_key).set_hashing_config(_hashed())
    try:
        config.verify(folder, folder / SIGNATURE)
    except (InvalidSignature, *FOREIGN) as error:
        reason = " ".join(str(error).split())[:400] or "the signature is not that of this key"
        raise DataError(
            Problem(
                code="SignatureInvalid",
                field=SIGNATURE,
                message=f"the signature does not hold: {reason}",
                cure="check that the public key is the signer's; otherwise do not use the artifact",
            )
        ) from error
    return identity


def key_id(key: Path) -> str:
    """Return the id of a private key: the sha256 of its public half, as it stands in signatures.

    Raises:
        SpecError: the key cannot be used.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        loaded = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a password
        raise _unusable(key, Env.SIGNING_KEY, str(error)) from None
    if not isinstance(loaded, EllipticCurvePrivateKey) or loaded.curve.name not in CURVES:
        raise _unusable(key, Env.SIGNING_KEY, "it is of another kind")
    return _id(loaded.public_key())


def public_key_id(key: Path) -> str:
    """Return the id of a public key.

    Raises:
        SpecError: the key cannot be used.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        loaded = load_pem_public_key(key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _unusable(key, "--public-key", str(error)) from None
    if not isinstance(loaded, EllipticCurvePublicKey) or loaded.curve.name not in CURVES:
        raise _unusable(key, "--public-key", "it is of another kind")
    return _id(loaded)


def _hashed() -> Any:
    """Return which files are signed, as model signing's configuration."""
    from model_signing import hashing

    config: Any = hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)


def _id(key: "EllipticCurvePublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _unusable(key: Path, field: str, reason: str) -> SpecError:
    return SpecError(
        Problem(
            code="SigningKeyInvalid",
            field=field,
            message=f"{key} is not a key that can be used: {reason.splitlines()[0] if reason else 'unreadable'}",
            cure="name a PEM file with a key on the curve P-256, P-384 or P-521, without a password: "
            "openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        )
    )
