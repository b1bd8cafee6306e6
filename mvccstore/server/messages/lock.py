"""The messages of package `v3lockpb`.

Made by `make messages` from proto/mvccstore_lock.proto; change that instead.
"""

from __future__ import annotations

from mvccstore.server.messages.pool import message

LockRequest = message("v3lockpb.LockRequest")
LockResponse = message("v3lockpb.LockResponse")
UnlockRequest = message("v3lockpb.UnlockRequest")
UnlockResponse = message("v3lockpb.UnlockResponse")
