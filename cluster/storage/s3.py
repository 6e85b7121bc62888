"""S3 through s3fs: uploads in parts, and writes under a condition."""

import asyncio
import contextlib
import functools
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from cluster.process.heartbeat import heartbeat
from cluster.storage.kinds import run
from cluster.storage.retry import attempt


def upload_parts(fs: Any, uri: str, temporary: str, path: str, step: int) -> None:
    """Send the local file in parts of ``step`` bytes, one after the other, each with its own retries: s3fs
    itself goes on sending parts of an aborted upload."""
    bucket, key, _ = fs.split_path(path)
    call = functools.partial(fs.call_s3, Bucket=bucket, Key=key)
    name = call("create_multipart_upload")["UploadId"]

    def send(number: int, part: bytes) -> dict[str, Any]:
        answer = attempt(
            uri, "write", lambda: call("upload_part", UploadId=name, PartNumber=number, Body=part)
        )
        heartbeat.advance()
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with open(temporary, "rb") as file:
            parts = [send(number, part) for number, part in enumerate(iter(lambda: file.read(step), b""), 1)]
        call("complete_multipart_upload", UploadId=name, MultipartUpload={"Parts": parts})
    except BaseException:
        with contextlib.suppress(Exception):
            call("abort_multipart_upload", UploadId=name)
        raise


def abort_uploads(fs: Any, path: str) -> None:
    """Delete the parts that failed uploads have left at an S3 service, if it allows that: they cost money."""
    with contextlib.suppress(Exception):
        bucket, key, _ = fs.split_path(path)
        for left in fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", []):
            if left["Key"] == key:
                fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=left["UploadId"])


def read_tagged(fs: Any, path: str, timeout: float | None) -> tuple[bytes, str]:
    """The whole of a small object, and its ETag."""

    async def get() -> tuple[bytes, str]:
        bucket, key, _ = fs.split_path(path)
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            return await body.read(), answer["ETag"]

    return run(fs, asyncio.wait_for(get(), timeout))


def swap(fs: Any, path: str, data: bytes | None, tag: str | None, timeout: float | None) -> str | None:
    """As ``remote.swap``. The service checks the condition itself; one that does not know conditions (501) is
    asked without, and older Ceph ignores that of a deletion: then another process may come between our check
    and the write."""
    bucket, key, _ = fs.split_path(path)

    def send(condition: Mapping[str, str]) -> str:
        body, name = ({}, "delete_object") if data is None else ({"Body": data}, "put_object")
        call = fs._call_s3(name, Bucket=bucket, Key=key, **body, **condition)
        return str(run(fs, asyncio.wait_for(call, timeout)).get("ETag", ""))

    # Ceph 16 refuses every ETag in quotes, and others may require them: so both are tried.
    ways = [{"IfNoneMatch": "*"}] if tag is None else [{"IfMatch": tag}, {"IfMatch": tag.strip('"')}]
    for condition in ways:
        try:
            return send(condition)
        except FileNotFoundError:
            if tag is None:
                raise  # no such bucket
        except OSError as fault:
            status = _status(fault)
            if status == HTTPStatus.NOT_IMPLEMENTED:
                break
            if status not in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT):
                raise
    else:
        return None
    there = None
    with contextlib.suppress(FileNotFoundError):
        there = read_tagged(fs, path, timeout)[1]
    return send({}) if there == tag else None


def _status(fault: Exception) -> int:
    """The HTTP status with which an S3 service refused, which s3fs raises as an OSError; 0 if it did not."""
    answer = getattr(fault.__cause__, "response", None) or {}
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
