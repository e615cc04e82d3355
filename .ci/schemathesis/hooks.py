"""What schemathesis has to know that the document cannot say: how a device signs, and how an allow-list is written."""

import csv
import io
import json
import os

import device_token
import schemathesis

COLUMNS = ["hardwareId", "enrollment", "tenant", "batch", "key"]


def are_rows(value) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


@schemathesis.serializer("text/csv")
def as_csv(ctx, value):
    if not value or not are_rows(value):
        return b"" if value == [] else str(value).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(value)
    return text.getvalue().encode("utf-8", errors="surrogatepass")


@schemathesis.serializer("application/x-ndjson")
def as_ndjson(ctx, value):
    rows = value if are_rows(value) else [value]
    return "\n".join(json.dumps(row) for row in rows).encode()


if os.environ["API_CHECK_PLANE"] == "device":

    @schemathesis.auth(refresh_interval=None)
    class DeviceToken:
        """Each device has a token of its own, made out to its hardware ID."""

        def get(self, case, ctx):
            hardware_id = case.body.get("hardwareId") if isinstance(case.body, dict) else None
            return device_token.token(os.environ["API_CHECK_GROUP_KEY"], hardware_id if isinstance(hardware_id, str) else "sn-1")

        def set(self, case, data, ctx):
            case.headers = case.headers or {}
            case.headers["Authorization"] = data
