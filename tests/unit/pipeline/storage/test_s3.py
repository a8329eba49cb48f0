"""s3_storage: every error of botocore becomes one line that says what to do and shows no credentials."""

from typing import Any

import botocore.exceptions
import pytest

from dladiff.errors import RefusedError, StorageError
from pipeline.storage.s3 import S3Storage


class FailingClient:
    """Answers every operation with one of botocore's own errors."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise self.error

        return fail


def client_error(code: str) -> botocore.exceptions.ClientError:
    message = "The AWS Access Key Id AKIASECRET does not exist"
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"RetryAttempts": 4}}
    return botocore.exceptions.ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (client_error("NoSuchBucket"), "no such bucket: out; create it"),
        (client_error("AccessDenied"), r"access denied to s3://out/p/k \(AccessDenied\); check the credentials"),
        (client_error("InvalidAccessKeyId"), "access denied"),
        (client_error("503"), r"S3 is overloaded or down \(503 after retries\)"),
        (client_error("SlowDown"), "run again later"),
        (client_error("Strange"), "S3 error Strange"),
        (client_error("KeyTooLongError"), "S3 refuses s3://out/p/k .*; shorten its name"),
        (botocore.exceptions.NoCredentialsError(), "no S3 credentials; set AWS_ACCESS_KEY_ID"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://u:pw@h"), "cannot reach http://h:1 "),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://u:pw@h"), "check the network"),
        (botocore.exceptions.ParamValidationError(report="AKIASECRET"), "before sending"),
    ],
)
def test_s3_errors_are_one_line_without_credentials(
    monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:pw@h:1")
    storage = S3Storage("s3://out/p")
    monkeypatch.setattr(storage, "_made", FailingClient(error))
    with pytest.raises(StorageError, match=line) as caught:
        storage.put("k", b"")
    assert isinstance(caught.value, RefusedError) == ("refuses" in line)  # one object's fault, not the storage's
    text = str(caught.value)
    assert "\n" not in text and "AKIASECRET" not in text and "pw" not in text
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
