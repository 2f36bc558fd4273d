"""Tells a chat of an alert: `perfkit watch --notify "python tell_chat.py"`, with CHAT_WEBHOOK in the environment."""

import json
import os
import sys
import urllib.request

event = json.load(sys.stdin)
text = f"{event['level']} {event['what']}: {event['text']}"
body = json.dumps({"text": text}).encode()
request = urllib.request.Request(os.environ["CHAT_WEBHOOK"], body, {"Content-Type": "application/json"})
urllib.request.urlopen(request, timeout=5).close()
