"""etcd's JSON gateway: the same services as over gRPC, called by POST with JSON over HTTP/1.1.

`paths` says which path is which method, `splitter` finds the objects of a body that streams, `metadata` makes a
call's metadata of headers, `call` is a call over an exchange, and `gateway` begins one for each request.
"""
