"""The SAS token of a device, after Microsoft's description of shared access signatures."""

import base64
import hashlib
import hmac
import time
from urllib.parse import quote

AUDIENCE = "gateway.test"


def token(group_key: str, hardware_id: str) -> str:
    """What the device of this ID presents: a token of its derived key, valid for an hour."""
    registration_id = hardware_id.lower()
    key = hmac.digest(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256)
    scope = quote(f"{AUDIENCE}/registrations/{registration_id}", safe="")
    end = int(time.time()) + 3600
    signature = base64.b64encode(hmac.digest(key, f"{scope}\n{end}".encode(), hashlib.sha256)).decode()
    return f"SharedAccessSignature sr={scope}&sig={quote(signature, safe='')}&se={end}"
