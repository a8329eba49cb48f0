"""S3 errors as one line that says what to do. botocore's text is dropped: it can hold key ids and proxy addresses."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as boto_errors
from botocore.configprovider import ConfiguredEndpointProvider
from urllib3 import exceptions as http_errors

from dladiff.errors import BusyError, NotFoundError, RefusedError, StorageError
from pipeline.storage.keys import redacted, shown

LOST = {"PreconditionFailed", "412"}
CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
MISSING = {"NoSuchKey", "404", "NotFound"}
DENIED = {
    "AccessDenied", "AllAccessDisabled", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException", "UnauthorizedAccess",
}  # fmt: skip
BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504"}
CHECKSUMS = {"NotImplemented", "InvalidArgument", "XAmzContentSHA256Mismatch"}
"""Answers of older servers to the checksum headers that boto3 sends by default."""
ABOUT_CHECKSUMS = re.compile(r"x-amz-(?:sdk-)?checksum|x-amz-trailer|x-amz-content-sha256|aws-chunked|STREAMING-", re.I)
WRITES = {"PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload"}
WHEN_REQUIRED = (
    "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required (in "
    "~/.aws/config: request_checksum_calculation, response_checksum_validation)"
)
ELSEWHERE = {"PermanentRedirect", "301", "SecondLevelDomainForbidden", "PathStyleDomainForbidden"}
"""Answers of servers that want the bucket in the host name; the last two are Alibaba's and Tencent's."""
STYLE = "addressing_style = {} below `s3 =` in ~/.aws/config"
REFUSED = {"KeyTooLongError", "EntityTooLarge"}  # the object's name is too long or its size too large
BROKEN_OFF = (http_errors.HTTPError, boto_errors.IncompleteReadError)  # a body that ends early, stalls or is corrupt
UNREACHABLE = (
    boto_errors.EndpointConnectionError,
    boto_errors.HTTPClientError,  # timeouts, closed connections, TLS and proxy errors
    *BROKEN_OFF,
)


@contextlib.contextmanager
def s3_errors(where: str, bucket: str) -> Iterator[None]:
    """Raise errors of botocore and urllib3 at the address `where` as StorageError or a subclass."""
    kind = StorageError
    try:
        yield
    except boto_errors.ClientError as exc:
        code = code_of(exc)
        kinds = {NotFoundError: MISSING, BusyError: BUSY | LOST, RefusedError: REFUSED}
        kind = next((one for one, codes in kinds.items() if code in codes), StorageError)
        line = _checksum_line(exc, code) or _line(code, shown(where), bucket)
    except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError):
        line = "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role"
    except (boto_errors.ProfileNotFound, boto_errors.TokenRetrievalError, boto_errors.SSOError):
        line = "the AWS profile or its login is not usable; check AWS_PROFILE or run `aws sso login`"
    except UNREACHABLE as exc:
        kind = BusyError
        line = (
            _host_line(exc, bucket)
            or f"cannot reach {endpoint()} ({type(exc).__name__}); check the network and AWS_ENDPOINT_URL"
        )
    except KeyError as exc:
        line = f"{endpoint()} answers without {exc} at {shown(where)}, which S3 always sends; check AWS_ENDPOINT_URL"
    except boto_errors.InvalidS3AddressingStyleError:
        line = f"unknown {STYLE.format(shown(style()))}; use path or virtual"
    except (boto_errors.BotoCoreError, ValueError) as exc:
        line = f"S3 refused {shown(where)} before sending ({type(exc).__name__}); check the URI and AWS settings"
    else:
        return
    raise kind(line) from None


def code_of(exc: boto_errors.ClientError) -> str:
    """Return the server's error code."""
    return str(exc.response.get("Error", {}).get("Code", "unknown"))


def custom_endpoint() -> str:
    """Return the S3 endpoint of the environment or the AWS configuration, "" for AWS. It may hold a password."""
    session = botocore.session.Session()
    try:
        full, scoped = session.full_config, session.get_scoped_config()
    except boto_errors.BotoCoreError:  # no such profile, or a damaged file
        full = scoped = {}
    return str(ConfiguredEndpointProvider(full, scoped, "s3").provide() or "")


def style() -> str:
    """Return the addressing style of the user's AWS configuration, "" where there is none."""
    try:
        found = botocore.session.Session().get_scoped_config().get("s3", {})
    except boto_errors.BotoCoreError:
        return ""
    return str(found.get("addressing_style", "")) if isinstance(found, dict) else ""


def endpoint() -> str:
    """Return scheme, host and port of the S3 server for messages, without credentials."""
    found = re.match(r"\w+://[^/?#]+", redacted(custom_endpoint()).replace("***@", ""))
    return shown(found[0]) if found else "S3"


def _checksum_line(exc: boto_errors.ClientError, code: str) -> str | None:
    """Return what to set if the server refuses checksum headers, None for other errors."""
    error: dict[str, Any] = dict(exc.response.get("Error", {}))
    about = ABOUT_CHECKSUMS.search(" ".join(str(value) for value in error.values()))
    if not about and not (code in CHECKSUMS and exc.operation_name in WRITES):
        return None
    if str(error.get("Header", "")).lower().startswith("if-"):
        return f"{endpoint()} does not support conditional writes ({error['Header']}); use a server that honours them"
    if about or code == "XAmzContentSHA256Mismatch":
        return (
            f"{endpoint()} refuses the checksum headers of boto3 ({shown(code)}), as older servers do; {WHEN_REQUIRED}"
        )
    return (
        f"{endpoint()} refuses a header or argument of a write ({shown(code)}): older servers refuse checksum headers; "
        f"{WHEN_REQUIRED}; else check the settings s3 (encryption, storage class)"
    )


def _host_line(exc: Exception, bucket: str) -> str | None:
    """Return what to set if the name of a custom endpoint's bucket does not resolve, None for other errors."""
    host = urlsplit(str(getattr(exc, "kwargs", {}).get("endpoint_url", ""))).hostname or ""
    if not host.startswith(f"{bucket.lower()}.") or host.endswith(".amazonaws.com"):
        return None
    return f"cannot reach {shown(host)}, the bucket's own host; check its name, or set {STYLE.format('path')}"


def _line(code: str, where: str, bucket: str) -> str:
    if code == "NoSuchBucket" and style() == "virtual":
        return (
            f"no such bucket: {shown(bucket)}; create it or check the URI; if the server expects the bucket in the "
            f"path, set {STYLE.format('path')}"
        )
    if code in ELSEWHERE:
        return (
            f"{endpoint()} wants the bucket {shown(bucket)} addressed by another host ({shown(code)}); check the "
            f"region (AWS_REGION) and AWS_ENDPOINT_URL, or set {STYLE.format('virtual')}"
        )
    if code == "NoSuchBucket":
        return f"no such bucket: {shown(bucket)}; create it or check the URI"
    if code in MISSING:
        return f"no such object: {where}; was it deleted during the run?"
    if code in DENIED:
        return f"access denied to {where} ({code}); check the credentials and the bucket's policy"
    if code in BUSY:
        return f"S3 is overloaded or down ({code} after retries) at {where}; run again later, done work is kept"
    if code in REFUSED:
        return f"S3 refuses {where[:200]} ({code}); shorten its name or make it smaller"
    if code in LOST:
        return f"{where} changed while it was read; run again"
    return f"S3 error {shown(code)} at {where}; check the URI, the region and AWS_ENDPOINT_URL"
