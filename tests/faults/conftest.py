"""The real S3 server of the integration tests."""

from tests.integration.conftest import s3_endpoint, s3_uri

__all__ = ["s3_endpoint", "s3_uri"]
