"""What the command line says of TLS: flags to options, in etcd's order of checks and with its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from mvccstore.server.flags import FlagError, Value, listed
from mvccstore.server.transport.tls import TLSOptions, self_signed

_FOLDER = "fixtures/client"


@dataclass(frozen=True, slots=True)
class AutoTLS:
    """A certificate that is made when the server starts, unless it is there: `--auto-tls`."""

    folder: Path
    hosts: tuple[str, ...]
    years: int

    def make(self) -> None:
        """Make it.

        Raises:
            OSError: It cannot be written, would be valid for no time at all, or `cryptography` is not installed.
        """
        try:
            self_signed(self.folder, self.hosts, self.years)
        except (ValueError, ImportError) as error:
            raise OSError(str(error)) from error


def tls_of(
    flags: Mapping[str, Value], data_dir: str, client_urls: Sequence[str], metrics_urls: Sequence[str]
) -> tuple[TLSOptions | None, AutoTLS | None]:
    """Return what https URLs are served with, and what must be made for that.

    Raises:
        FlagError: Flags contradict each other, or a URL needs what there is not.
    """
    cert, key = str(flags["cert-file"]), str(flags["key-file"])
    has_files = bool(cert or key)
    try:
        # What is wrong in itself is said even if nothing is secure.
        options = TLSOptions(
            cert if has_files else "none",
            key if has_files else "none",
            str(flags["trusted-ca-file"]),
            bool(flags["client-cert-auth"]),
            crl_file=str(flags["client-crl-file"]),
            allowed_hostnames=listed(flags, "client-cert-allowed-hostname"),
            allowed_names=listed(flags, "client-cert-allowed-cn"),
            min_version=str(flags["tls-min-version"]),
            max_version=str(flags["tls-max-version"]),
            cipher_suites=listed(flags, "cipher-suites"),
        )
    except ValueError as error:
        raise FlagError(str(error)) from error
    if has_files:
        return options, None
    if flags["auto-tls"]:
        folder = Path(data_dir).absolute() / _FOLDER
        hosts = tuple(dict.fromkeys(filter(None, (urlsplit(url).hostname for url in client_urls))))
        made = replace(options, cert_file=str(folder / "cert.pem"), key_file=str(folder / "key.pem"))
        return made, AutoTLS(folder, hosts, int(flags["self-signed-cert-validity"]))
    for url in client_urls:
        if _is_secure(url):
            msg = f"TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            raise FlagError(msg)
    if any(map(_is_secure, metrics_urls)):
        msg = "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url"
        raise FlagError(msg)
    return None, None


def _is_secure(url: str) -> bool:
    return url.partition("://")[0] in {"https", "unixs"}
