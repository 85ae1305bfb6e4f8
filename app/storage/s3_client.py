"""How is boto3 set up to speak to S3, and to any store that speaks like it?"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.httpsession import where

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

# A try and one more: callers have a loop of their own, and meanwhile a dead store holds a thread.
_TRIES_MAX = 2


@dataclass(frozen=True)
class OpenedClient:
    """A client of boto3, and what it goes by: whose credentials (renewed at any time), and whom TLS believes."""

    s3: "S3Client"
    credentials: "Callable[[], Credentials | None]"
    ca_bundle: str


def open_client(
    *,
    endpoint_url: str | None,
    region: str | None,
    path_style: bool,
    access_key_id: str | None,
    secret_access_key: str | None,
    connections_max: int,
    connect_timeout_seconds: float,
    read_timeout_seconds: float,
) -> OpenedClient:
    """Return a client that talks to nobody yet. Without `access_key_id` it looks for credentials by boto3's own chain.

    Raises ValueError when the endpoint is no URL, and what botocore raises for other settings that make no request.
    """
    config = Config(
        signature_version="s3v4",
        # The defaults break R2, B2 and OVH, and hash every body a second time.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": _TRIES_MAX},
        connect_timeout=connect_timeout_seconds,
        read_timeout=read_timeout_seconds,
        max_pool_connections=connections_max,
        tcp_keepalive=True,
        s3={
            # Not "auto": with an endpoint of one's own that means path style always, which some stores refuse.
            "addressing_style": "path" if path_style else "virtual",
            # Over https TLS and Content-MD5 keep the body whole; over plain http the signature has to cover it.
            "payload_signing_enabled": endpoint_url is not None and not endpoint_url.startswith("https://"),
        },
    )
    core = botocore.session.get_session()
    session = boto3.session.Session(
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        region_name=region,
        botocore_session=core,
    )
    client: S3Client = session.client("s3", endpoint_url=endpoint_url, config=config)
    # Redirected, botocore asks HEAD of the bucket for its region; where that is redirected too (from plain http to
    # https, say) it asks again, a thousand times over. S3 names the region in the redirect itself.
    client.meta.events.register("before-call.s3.HeadBucket", _region_unknown)
    # As botocore finds it.
    ca_bundle = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or where()
    return OpenedClient(client, core.get_credentials, ca_bundle)


def _region_unknown(**_: object) -> None:
    raise ClientError(
        {
            "ResponseMetadata": {
                "RequestId": "",
                "HostId": "",
                "HTTPStatusCode": 301,
                "HTTPHeaders": {},
                "RetryAttempts": 0,
            }
        },
        "HeadBucket",
    )
