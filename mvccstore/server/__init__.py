"""etcd v3 on the wire, over a store: `with mvccstore.server.serve(store) as server:`, or `mvccstore serve`.

    transport/   gRPC and HTTP over sockets; knows nothing of etcd
    messages/    what is said: protobuf and JSON
    services/    one module a service: requests of the wire to requests of the store
    gateway/     the same services over JSON; `pages` the rest of what HTTP is asked for
    node         what the services share: the store, its writer, who the member is; `members`, `alarms`
    auth/        users, roles and permissions, tokens, and the gate that services ask
    server       all of it put together; `serving` for programs, `process` for the command line, `flags` its flags

Needs the extra: `pip install 'mvccstore[server]'`.
"""

try:
    import google.protobuf  # noqa: F401 - only whether it is there
    import h11  # noqa: F401
    import hpack  # noqa: F401
except ImportError as error:
    msg = f"{error.name} is not installed; pip install 'mvccstore[server]'"
    raise ImportError(msg) from error

from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.member import Identity
from mvccstore.server.node import RequestLimits
from mvccstore.server.server import Server, ServerOptions
from mvccstore.server.serving import Serving, serve
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.tls import TLSOptions

__all__ = [
    "AuthOptions",
    "Identity",
    "RequestLimits",
    "Server",
    "ServerOptions",
    "Serving",
    "TLSOptions",
    "TransportLimits",
    "serve",
]
