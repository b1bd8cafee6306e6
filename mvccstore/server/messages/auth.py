"""The messages of package `authpb`.

Made by `make messages` from proto/mvccstore_auth.proto; change that instead.
"""

from __future__ import annotations

from mvccstore.server.messages.pool import message

UserAddOptions = message("authpb.UserAddOptions")
User = message("authpb.User")
Permission = message("authpb.Permission")
Role = message("authpb.Role")
