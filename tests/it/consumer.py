"""Reads requests that Berth sent, one a line as JSON, as a receiver does: by the libraries of those who made the
formats. Prints what it read, one a line; what they refuse ends it."""

import base64
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook

kind, secret = sys.argv[1:]
for line in sys.stdin:
    request = json.loads(line)
    headers, body = request["headers"], base64.b64decode(request["body"])
    verified = Webhook(secret).verify(body.decode(), headers)
    if kind == "cloudevents":
        event = from_http_event(HTTPMessage(headers=headers, body=body))
        print(json.dumps({**event.get_attributes(), "data": event.get_data()}, default=str))
    else:
        print(json.dumps(verified))
