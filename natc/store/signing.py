"""A package's list of SHA-256, and its signature.

`NAME.sha256` lists every file of the package beside it; `sha256sum --check` reads it, too.
`NAME.sha256.sig` is the ed25519 signature of its bytes, in base64.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natc import env
from natc.errors import ArgumentError, NatcError
from natc.store.files import reason

if TYPE_CHECKING:
    from collections.abc import Mapping

SUMS, SIGNATURE = ".sha256", ".sha256.sig"


def sums(files: Mapping[str, str]) -> bytes:
    """Return the content of a list; files: name -> SHA-256."""
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()


def parse_sums(data: bytes) -> dict[str, str]:
    """Return name -> SHA-256 from a list's content; raises ValueError for another format."""
    files = {}
    for line in data.decode().splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).name != name:
            raise ValueError(f"{line[:80]!r} is not a SHA-256 and a file name")
        files[name] = digest
    return files


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Signer:
    """Signs lists with a private key.

    Raises ArgumentError for a file that holds no such key, and NatcError without `cryptography`.
    """

    def __init__(self, key: Path) -> None:
        from_pem = _serialization("sign packages").load_pem_private_key
        self._key = _load(key, "private", lambda data: from_pem(data, password=None))

    def sign(self, data: bytes) -> bytes:
        """Return the content of the signature file for some bytes."""
        return base64.b64encode(self._key.sign(data)) + b"\n"


class Verifier:
    """Checks signatures with public keys.

    Raises ArgumentError for a file that holds no such key, and NatcError without `cryptography`.
    """

    def __init__(self, *keys: Path) -> None:
        from_pem = _serialization("check signatures").load_pem_public_key
        self._keys = [_load(key, "public", from_pem) for key in keys]

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Return whether the owner of a key signed some bytes; signature: the file's content."""
        from cryptography.exceptions import InvalidSignature

        for key in self._keys:
            with contextlib.suppress(InvalidSignature, ValueError):
                key.verify(base64.b64decode(signature, validate=False), data)
                return True
        return False


def trusted() -> Verifier | None:
    """Return the verifier of the keys in NATC_TRUSTED_KEYS, or None if the variable is not set."""
    # Without any key in it, the variable forbids every library.
    if env.NATC_TRUSTED_KEYS.get() is None:
        return None
    return Verifier(*map(Path, env.NATC_TRUSTED_KEYS.paths()))


def _serialization(purpose: str) -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise NatcError(
            f"to {purpose}, natc needs the package cryptography, which is not installed: "
            "pip install 'natc[sign]'."
        ) from error
    return serialization


def _load(path: Path, kind: str, read: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ed25519

    wanted = (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)[kind == "public"]
    try:
        key = read(path.read_bytes())
    except OSError as error:
        raise ArgumentError(f"key {path} cannot be read: {reason(error)}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ArgumentError(
            f"key {path} is not an unencrypted {kind} key in PEM format."
        ) from error
    if not isinstance(key, wanted):
        raise ArgumentError(f"key {path} is not a {kind} ed25519 key.")
    return key
