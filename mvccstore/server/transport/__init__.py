"""gRPC and HTTP over TCP and unix sockets: frames, flow control, calls. Knows nothing of etcd.

`call` is what services are written against; `http2` and `http1` carry calls; `port` listens.
"""
