"""Keys that sign packages."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def write_keys(directory: Path) -> tuple[Path, Path]:
    """Write a new private and a public key into a directory; return both files."""
    key = Ed25519PrivateKey.generate()
    private, public = directory / "key.pem", directory / "key.pub"
    pem, pkcs8 = form.Encoding.PEM, form.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, form.NoEncryption()))
    spki = form.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, spki))
    return private, public
