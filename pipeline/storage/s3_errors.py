"""S3 errors as one line that says what to do. botocore's text is dropped: it can hold key ids and proxy addresses."""

import contextlib
import os
import re
from collections.abc import Iterator

from botocore import exceptions as boto_errors
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
        line = _line(code, shown(where), bucket)
    except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError):
        line = "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role"
    except (boto_errors.ProfileNotFound, boto_errors.TokenRetrievalError, boto_errors.SSOError):
        line = "the AWS profile or its login is not usable; check AWS_PROFILE or run `aws sso login`"
    except UNREACHABLE as exc:
        kind = BusyError
        line = f"cannot reach {endpoint()} ({type(exc).__name__}); check the network and AWS_ENDPOINT_URL"
    except KeyError as exc:
        line = f"{endpoint()} answers without {exc} at {shown(where)}, which S3 always sends; check AWS_ENDPOINT_URL"
    except (boto_errors.BotoCoreError, ValueError) as exc:
        line = f"S3 refused {shown(where)} before sending ({type(exc).__name__}); check the URI and AWS settings"
    else:
        return
    raise kind(line) from None


def code_of(exc: boto_errors.ClientError) -> str:
    """Return the server's error code."""
    return str(exc.response.get("Error", {}).get("Code", "unknown"))


def custom_endpoint() -> str:
    """Return the S3 endpoint set in the environment, "" for AWS. It may hold a password."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def endpoint() -> str:
    """Return scheme, host and port of the S3 server for messages, without credentials."""
    found = re.match(r"\w+://[^/?#]+", redacted(custom_endpoint()).replace("***@", ""))
    return shown(found[0]) if found else "S3"


def _line(code: str, where: str, bucket: str) -> str:
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
