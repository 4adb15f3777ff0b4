"""The check that a library was signed by somebody whose public key is in NATC_TRUSTED_KEYS."""

from __future__ import annotations

from natc import env
from natc.errors import NatcError
from natc.runtime.scan import Library
from natc.store.manifest import file_sha256
from natc.store.signing import SIGNATURE, SUMS, Verifier, parse_sums, trusted


def unsigned(library: Library) -> str | None:
    """Return why NATC_TRUSTED_KEYS forbids opening a library, as a clause, or None if it does not.

    A list of hashes beside the library must hold the library and its manifest, and a key in the
    variable must have signed the list. The caller has compared the library with its manifest.
    """
    try:
        verifier = trusted()
        problem = _problem(library, verifier) if verifier else None
    except (NatcError, OSError) as error:
        problem = str(error).rstrip(".")
    return problem and (
        f"{env.NATC_TRUSTED_KEYS.name} is set, and {problem}; install a package that a key in "
        "the variable signed, add the public key of this package's signer, or unset the variable"
    )


def _problem(library: Library, verifier: Verifier) -> str | None:
    """Return why no signed list holds a library, as a clause, or None if one does."""
    path = library.manifest_path
    hashes = {library.path.name: library.manifest.sha256, path.name: file_sha256(path)}
    problem = "no list of hashes (.sha256) beside the library holds it and its manifest"
    for list_path in sorted(path.parent.glob(f"*{SUMS}")):
        data = list_path.read_bytes()
        try:
            if not hashes.items() <= parse_sums(data).items():
                continue
        except ValueError:
            problem = f"list {list_path.name} is damaged"
            continue
        signature = list_path.with_name(list_path.name.removesuffix(SUMS) + SIGNATURE)
        if not signature.is_file():
            problem = f"list {list_path.name}, which holds it, is not signed"
        elif verifier.verify(data, signature.read_bytes()):
            return None
        else:
            problem = f"list {list_path.name}, which holds it, was signed by none of its keys"
    return problem
