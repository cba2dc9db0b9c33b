"""Signatures of registered models, in the format of OpenSSF model signing (`xkd[sign]`).

`promote` signs with the private key that `XKD_SIGNING_KEY` names, and whoever pulls verifies with
the public key that `XKD_PUBLIC_KEY` names. Both are PEM files of elliptic curves:

    openssl ecparam -name prime256v1 -genkey -noout -out signing.pem
    openssl ec -in signing.pem -pubout -out public.pem

The command `model_signing verify key MODEL --signature MODEL/model.sig` accepts the same files.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from pipelines.errors import UserError
from pipelines.redaction import one_line
from pipelines.registry.manifest import SIGNATURE_FILE

SIGNING_KEY = "XKD_SIGNING_KEY"
PUBLIC_KEY = "XKD_PUBLIC_KEY"


def wants_signature() -> bool:
    """Whether models must be signed: a public key is given."""
    return bool(os.environ.get(PUBLIC_KEY))


def check_keys() -> None:
    """Makes sure that the keys that are given can be used.

    Raises:
        UserError: If a key is missing or model-signing is not installed.
    """
    for variable in (SIGNING_KEY, PUBLIC_KEY):
        _key(variable)


def sign(folder: Path) -> bool:
    """Signs a model if a key is given; returns whether one was.

    Raises:
        UserError: If the key cannot be used.
    """
    key = _key(SIGNING_KEY)
    if key is None:
        return False
    from model_signing import hashing, signing

    try:
        hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE, "registered_model_meta"])
        signer = signing.Config().use_elliptic_key_signer(private_key=key)
        signer.set_hashing_config(hashed).sign(folder, folder / SIGNATURE_FILE)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{SIGNING_KEY} ({key}) cannot sign: {one_line(error)}") from error
    return True


def check_signature(folder: Path, name: str) -> None:
    """Makes sure that a model is signed, if a public key is given.

    Raises:
        UserError: If it is not, or not with that key, or a file was changed; it names the file.
    """
    key = _key(PUBLIC_KEY)
    if key is None:
        return
    from model_signing import verifying

    signature = folder / SIGNATURE_FILE
    if not signature.is_file():
        raise UserError(
            f"model ({name}) is refused: it is not signed, but {PUBLIC_KEY} ({key}) asks for it"
        )
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
        verifier.set_ignore_unsigned_files(False).verify(folder, signature)
    except Exception as error:  # of cryptography, or of a damaged signature, in many classes
        reason = one_line(error) or type(error).__name__
        raise UserError(
            f"model ({name}) is refused: its signature does not fit {PUBLIC_KEY} ({key}): {reason}"
        ) from error


def _key(variable: str) -> Path | None:
    """The file that a variable names; None if it is not set."""
    value = os.environ.get(variable)
    if not value:
        return None
    if not Path(value).is_file():
        raise UserError(f"{variable} ({value}) must be a PEM file, but no such file exists")
    if find_spec("model_signing") is None:
        raise UserError(f"{variable} is set, but model-signing is not installed: xkd[sign]")
    return Path(value)
