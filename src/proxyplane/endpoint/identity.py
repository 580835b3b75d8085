"""Who an endpoint is: a key, and a certificate that the key has signed itself.

Nobody else vouches for it. The id is the fingerprint of the certificate, so whoever knows the id
can tell the endpoint from everybody else. The certificate says nothing, and does not end: an
endpoint that is to be forgotten is taken off the lists of its peers.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl

from proxyplane.connectors.endpoint.keys import id_of
from proxyplane.exceptions import ConfigError

__all__ = ["IDENTITY_FILE", "certificate_of", "client_context", "create", "server_context"]

IDENTITY_FILE = "identity.pem"


def create(path: str) -> str:
    """Makes a new identity, in a file that only its owner can read, and returns its id.

    Raises:
        ConfigError: The package that makes certificates is not installed.
        FileExistsError: There is one already.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise ConfigError(
            "an endpoint needs the package cryptography, for its certificate",
            hint="pip install 'proxyplane[endpoint]'",
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    # Names differ, since OpenSSL looks for certificates by them.
    common = f"proxyplane endpoint {os.urandom(8).hex()}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
        .sign(key, hashes.SHA256())
    )
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(file, "wb") as writer:
        writer.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        writer.write(certificate.public_bytes(serialization.Encoding.PEM))
    return id_of(certificate.public_bytes(serialization.Encoding.DER))


def certificate_of(path: str) -> bytes:
    """The certificate (DER) of an identity file.

    Raises:
        ConfigError: There is none, or others can read the key.
    """
    try:
        mode = os.stat(path).st_mode
        with open(path, encoding="ascii") as file:
            text = file.read()
        begin = text.index("-----BEGIN CERTIFICATE-----")
        certificate = ssl.PEM_cert_to_DER_cert(text[begin:])
    except (OSError, ValueError) as error:
        raise ConfigError(f"there is no identity in {path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(
            f"{path} holds a private key, and others can read it", hint=f"chmod 600 {path}"
        )
    return certificate


def server_context(path: str) -> ssl.SSLContext:
    """For those who come: a certificate is asked for, and may be left out for an introduction."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, path)
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would not ask for the certificate again.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def client_context(path: str | None) -> ssl.SSLContext:
    """For going to others; the id of the one who answers is to be checked by the caller.

    Args:
        path: The identity to show, or None to show none.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, path)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint says more than any authority
    return context


def _context(protocol: int, path: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if path is not None:
        context.load_cert_chain(path)
    return context
