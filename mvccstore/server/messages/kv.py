"""The messages of package `mvccpb`.

Made by `make messages` from proto/mvccstore_kv.proto; change that instead.
"""

from __future__ import annotations

from mvccstore.server.messages.pool import message

KeyValue = message("mvccpb.KeyValue")
Event = message("mvccpb.Event")
