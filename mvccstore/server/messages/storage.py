"""The messages of package `leasepb`.

Made by `make messages` from proto/mvccstore_storage.proto; change that instead.
"""

from __future__ import annotations

from mvccstore.server.messages.pool import message

Lease = message("leasepb.Lease")
